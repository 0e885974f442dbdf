//! Tries every order of a model's steps.
//!
//! Breadth first, so the path to what is wrong is a shortest one. States are told apart by a hash
//! of 64 bits: among the million that we meet, that two share one has a chance of less than one in
//! ten million.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::{self, Debug},
    hash::{DefaultHasher, Hash, Hasher},
};

/// What a step shows beside the state that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Something that a search must have met, or it proves nothing.
    Saw(&'static str),
    /// A property that does not hold.
    Broke(&'static str),
}

/// Something that goes in steps.
pub trait Model {
    /// All that matters for what comes next.
    type State: Clone + Hash;
    /// A step.
    type Action: Copy + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// The steps that may come next.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// Takes one of them; tells what it has shown.
    fn step(&self, state: &mut Self::State, action: Self::Action, notes: &mut Vec<Note>);
}

/// What a search has found.
#[derive(Debug, Clone)]
pub struct Found {
    /// How many states there are, or how many were looked at before something was wrong.
    pub states: usize,
    /// What was met.
    pub seen: BTreeSet<&'static str>,
    /// What is wrong, if anything.
    pub broken: Option<Broken>,
}

/// A property that does not hold, and how to get there.
#[derive(Debug, Clone)]
pub struct Broken {
    /// The property.
    pub property: &'static str,
    /// The steps from the start.
    pub path: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not hold:", self.property)?;
        self.path.iter().try_for_each(|step| write!(f, "\n  {step}"))
    }
}

/// Visits all states that `model` can be in, until one shows that something is wrong.
pub fn search<M: Model>(model: &M) -> Found {
    let start = model.start();
    let mut came: HashMap<u64, (u64, Option<M::Action>)> = HashMap::new();
    came.insert(fingerprint(&start), (0, None));
    let mut found = Found { states: 1, seen: BTreeSet::new(), broken: None };
    let mut layer = vec![start];
    let mut notes = Vec::new();
    while !layer.is_empty() {
        let mut next_layer = Vec::new();
        for state in layer {
            let from = fingerprint(&state);
            for action in model.actions(&state) {
                let mut next = state.clone();
                model.step(&mut next, action, &mut notes);
                let fingerprint = fingerprint(&next);
                let is_new = !came.contains_key(&fingerprint);
                if is_new {
                    came.insert(fingerprint, (from, Some(action)));
                    next_layer.push(next);
                }
                for note in notes.drain(..) {
                    match note {
                        Note::Saw(what) => {
                            found.seen.insert(what);
                        }
                        Note::Broke(property) => {
                            let mut path = path(&came, from);
                            path.push(format!("{action:?}"));
                            found.states = came.len();
                            found.broken = Some(Broken { property, path });
                            return found;
                        }
                    }
                }
            }
        }
        layer = next_layer;
    }
    found.states = came.len();
    found
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn path<A: Copy + Debug>(came: &HashMap<u64, (u64, Option<A>)>, to: u64) -> Vec<String> {
    let mut path = Vec::new();
    let mut at = to;
    while let Some((from, Some(action))) = came.get(&at) {
        path.push(format!("{action:?}"));
        at = *from;
    }
    path.reverse();
    path
}
