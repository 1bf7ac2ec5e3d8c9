//! Compensation without a journal: register an undo after each thing that was done, and run them in
//! reverse when something fails.
//!
//! Decides the order. Never stops at an undo that fails: the others still run, and the report says
//! which failed. Nothing survives a crash: for that there are sagas.
//!
//! Source: the compensation manager of the project's seed; Garcia-Molina and Salem 1987.

use crate::function::{BoxFuture, panic_text};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Undos of what was done so far.
///
/// ```
/// use rallypoint_saga::compensations::Compensations;
/// # fn block<T>(f: impl std::future::Future<Output = T>) -> T {
/// #     let mut f = std::pin::pin!(f);
/// #     match f.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
/// #         std::task::Poll::Ready(value) => value, std::task::Poll::Pending => unreachable!() } }
/// let mut compensations = Compensations::new();
/// compensations.register("withdraw", || async { Ok::<_, String>(()) });
/// compensations.register("deposit", || async { Err("the account is closed".to_owned()) });
/// let report = block(compensations.compensate());
/// assert_eq!(report.undone, ["withdraw"]);
/// assert_eq!(report.failed, [("deposit".to_owned(), "the account is closed".to_owned())]);
/// ```
#[derive(Default)]
#[must_use = "what is registered is undone by `compensate`; `commit` says that nothing is to be undone"]
pub struct Compensations {
    undos: Vec<(String, Undo)>,
}

type Undo = Box<dyn FnOnce() -> BoxFuture<Result<(), String>> + Send>;

/// What became of the undos.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompensationReport {
    /// Those that ran well, in the order they ran.
    pub undone: Vec<String>,
    /// Those that did not, and why; a panic is a failure.
    pub failed: Vec<(String, String)>,
}

impl CompensationReport {
    /// True when nothing is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty()
    }
}

impl Compensations {
    /// Nothing is done yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How what was just done (or is about to be) is undone.
    pub fn register<E, F, Fut>(&mut self, name: &str, undo: F)
    where
        E: std::fmt::Display,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
    {
        let undo: Undo = Box::new(move || {
            let undo = undo();
            Box::pin(async move { undo.await.map_err(|error| error.to_string()) })
        });
        self.undos.push((name.to_owned(), undo));
    }

    /// Registers `undo`, then does `action`: an action that fails half-way is undone with the rest.
    ///
    /// # Errors
    /// The action's own; call [`Compensations::compensate`] then.
    pub async fn execute<T, E, X, F, Fut>(
        &mut self,
        name: &str,
        action: impl Future<Output = Result<T, E>>,
        undo: F,
    ) -> Result<T, E>
    where
        X: std::fmt::Display,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), X>> + Send + 'static,
    {
        self.register(name, undo);
        action.await
    }

    /// Everything went well: nothing is undone.
    pub fn commit(self) {}

    /// Runs the undos, the newest first, whatever becomes of each.
    pub async fn compensate(mut self) -> CompensationReport {
        let mut report = CompensationReport::default();
        while let Some((name, undo)) = self.undos.pop() {
            let made = catch_unwind(AssertUnwindSafe(undo));
            let result = match made {
                Ok(future) => Guarded(future).await,
                Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
            };
            match result {
                Ok(()) => report.undone.push(name),
                Err(why) => report.failed.push((name, why)),
            }
        }
        report
    }
}

/// A future whose panic is its failure.
struct Guarded(BoxFuture<Result<(), String>>);

impl Future for Guarded {
    type Output = Result<(), String>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)))
            .unwrap_or_else(|panic| Poll::Ready(Err(format!("panicked: {}", panic_text(&*panic)))))
    }
}
