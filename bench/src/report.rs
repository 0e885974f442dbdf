//! What a measurement found.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::scenario::{Cell, Form, Scenario, StoreKind};

/// The build's profile: only `dist` is worth comparing.
pub(crate) const PROFILE: &str = env!("ONWARD_PROFILE");

/// The build's commit.
pub(crate) const COMMIT: &str = env!("ONWARD_COMMIT");

/// One measurement with all its figures.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: Scenario,
    pub(crate) form: Form,
    pub(crate) store: StoreKind,
    pub(crate) concurrency: usize,
    pub(crate) profile: &'static str,
    pub(crate) commit: &'static str,
    pub(crate) database: String,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

/// Figures by name.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Notes a figure, to four digits behind the point.
    pub(crate) fn set(&mut self, name: impl Into<String>, value: f64) {
        if value.is_finite() {
            self.0.insert(name.into(), (value * 10_000.0).round() / 10_000.0);
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }
}

impl Report {
    pub(crate) fn new(cell: &Cell, database: String, figures: Figures) -> Self {
        Self {
            scenario: cell.scenario,
            form: cell.form,
            store: cell.store,
            concurrency: cell.concurrency,
            profile: PROFILE,
            commit: COMMIT,
            database,
            figures,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} on {}", self.scenario, self.form, self.database)?;
        writeln!(f, "concurrency {}, profile {PROFILE}, commit {COMMIT}", self.concurrency)?;
        for (name, value) in &self.figures.0 {
            writeln!(f, "  {name:<28} {value}")?;
        }
        Ok(())
    }
}
