//! A process that is not one: tasks that stop, go on and end together, in the middle of whatever
//! they do.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::task::{AbortHandle, JoinHandle};

/// The tasks of one simulated process.
#[derive(Clone, Default)]
pub struct SimulatedProcess(Arc<Mutex<Tasks>>);

#[derive(Default)]
struct Tasks {
    running: Vec<AbortHandle>,
    /// How many there are before those that have ended are looked for.
    sweep_at: usize,
    /// Those that would go on, while the process is frozen.
    frozen: Option<Vec<Waker>>,
    killed: bool,
}

impl fmt::Debug for SimulatedProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedProcess").finish_non_exhaustive()
    }
}

impl SimulatedProcess {
    /// No task takes another step until [`thaw`](Self::thaw), like after SIGSTOP.
    pub fn freeze(&self) {
        self.tasks().frozen.get_or_insert_default();
    }

    /// All tasks go on.
    pub fn thaw(&self) {
        let frozen = self.tasks().frozen.take();
        frozen.into_iter().flatten().for_each(Waker::wake);
    }

    /// All tasks end where they stand, like after SIGKILL; later ones do not begin.
    pub fn kill(&self) {
        let running = {
            let mut tasks = self.tasks();
            tasks.killed = true;
            std::mem::take(&mut tasks.running)
        };
        running.iter().for_each(AbortHandle::abort);
    }

    pub(super) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = tokio::spawn(Held { process: self.clone(), future: Box::pin(future) });
        let mut tasks = self.tasks();
        if tasks.killed {
            handle.abort();
        }
        if tasks.running.len() >= tasks.sweep_at {
            tasks.running.retain(|task| !task.is_finished());
            tasks.sweep_at = 64.max(2 * tasks.running.len());
        }
        tasks.running.push(handle.abort_handle());
        handle
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task's future, which does nothing while its process is frozen.
struct Held<F> {
    process: SimulatedProcess,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Held<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(frozen) = &mut self.process.tasks().frozen {
            frozen.push(cx.waker().clone());
            return Poll::Pending;
        }
        self.future.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::mpsc, time::sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_frozen_process_goes_on_where_it_stood_and_a_killed_one_does_not() {
        let process = SimulatedProcess::default();
        let (ticks, mut ticked) = mpsc::unbounded_channel();
        let ticking = process.spawn(async move {
            loop {
                sleep(Duration::from_secs(1)).await;
                let _ = ticks.send(());
            }
        });
        ticked.recv().await;
        process.freeze();
        sleep(Duration::from_mins(1)).await;
        assert!(ticked.is_empty());
        process.thaw();
        ticked.recv().await;
        process.kill();
        assert!(ticking.await.is_err_and(|error| error.is_cancelled()));
        assert!(process.spawn(async {}).await.is_err(), "nothing begins after a kill");
    }
}
