//! The server as a whole: how it starts, drains and ends.
//!
//! Decides what must be right before anything is served (token, address, definitions), and that an end
//! takes no new request, lets those in flight be answered and checkpoints the store. A kill instead of
//! an orderly end loses nothing: every answer was durable before it was given.

use crate::catalog::{self, Catalog, PutError};
use crate::declared;
use crate::http::auth::{Token, TokenError};
use crate::http::{Server, router};
use crate::listen;
use rallypoint::{App, RootError, Runtime, UnitNotice};
use rallypoint_engine::command::Notice;
use rallypoint_host::os::process::allow_open_files;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Most connections at once, of clients and to participants each, however many files are allowed.
const CONNECTIONS: usize = 8_000;
/// How long the last checkpoint may take.
const CLOSE: Duration = Duration::from_secs(20);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The store's directory; one is made where there is none.
    pub dir: PathBuf,
    /// Its second copy.
    pub mirror: Option<PathBuf>,
    /// Go on with one copy although the other one is missing.
    pub degraded: bool,
    /// Where to listen; port 0 = any that is free.
    pub listen: SocketAddr,
    /// Definitions that are put at start.
    pub sagas: Option<PathBuf>,
    /// The token that requests must carry.
    pub token_file: Option<PathBuf>,
    /// Use a file system that is known not to keep what it acknowledges (for tests).
    pub allow_unsuitable_file_system: bool,
    /// Bytes of a log segment in a store that is made; `None` = the default.
    pub segment_len: Option<u64>,
    /// Delete sagas this long after they ended; `None` = never.
    pub retention: Option<Duration>,
    /// How long requests in flight may take at the end.
    pub drain: Duration,
    /// Told what a person should see: alarms, and the notices of the store.
    pub tell: fn(&str),
}

impl ServeOptions {
    /// The defaults over a directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            mirror: None,
            degraded: false,
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            sagas: None,
            token_file: None,
            allow_unsuitable_file_system: false,
            segment_len: None,
            retention: None,
            drain: Duration::from_secs(20),
            tell: |_| {},
        }
    }
}

/// Why a server did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The token file.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Others could reach it.
    #[error(
        "{0} can be reached from other machines: give --token-file, or listen on a loopback address \
         (127.0.0.1)"
    )]
    Exposed(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; choose another address or port, or 0 for any")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] RootError),
    /// What performs calls could not be made.
    #[error("the HTTP client cannot be made: {0}")]
    Caller(String),
    /// The folder of definitions cannot be read.
    #[error("the definitions in {} cannot be read: {error}", path.display())]
    Folder {
        /// Folder or file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A definition of the folder is not taken.
    #[error("{}: {error}", file.display())]
    Definition {
        /// Its file.
        file: PathBuf,
        /// Why.
        error: PutError,
    },
    /// No runtime could be made, or no signal be waited for.
    #[error("the server cannot run: {0}")]
    Process(io::Error),
}

/// A server that runs.
pub struct Running {
    address: SocketAddr,
    draining: watch::Sender<bool>,
    /// Gives whether everybody was answered.
    serving: JoinHandle<bool>,
    watching: JoinHandle<()>,
    server: Arc<Server>,
}

fn read_token(options: &ServeOptions) -> Result<Option<Token>, ServeError> {
    let token = options.token_file.as_deref().map(Token::read).transpose()?;
    if token.is_none() && !options.listen.ip().is_loopback() {
        return Err(ServeError::Exposed(options.listen));
    }
    Ok(token)
}

/// How many connections there may be of clients, and how many to participants. Each takes one of the
/// files that the process may open; a quarter of them is left to the store, which fails without.
fn connections() -> (usize, usize) {
    let files = usize::try_from(allow_open_files()).unwrap_or(usize::MAX);
    ((files / 2).clamp(8, CONNECTIONS), (files / 4).clamp(4, CONNECTIONS))
}

fn open(options: &ServeOptions, catalog: &Arc<Catalog>, calls: usize) -> Result<Runtime, ServeError> {
    let registry = declared::registry(Arc::clone(catalog), calls).map_err(ServeError::Caller)?;
    let mut app = App::define()
        .actor::<catalog::DefinitionActor>()
        .sagas(registry)
        .degraded(options.degraded)
        .allow_unsuitable_file_system(options.allow_unsuitable_file_system);
    if let Some(mirror) = &options.mirror {
        app = app.mirror(mirror);
    }
    if let Some(bytes) = options.segment_len {
        app = app.segment_len(bytes);
    }
    if let Some(retention) = options.retention {
        app = app.saga_retention(retention);
    }
    Ok(app.open(&options.dir)?)
}

/// Starts a server on the tokio runtime of the caller. It serves when this returns.
///
/// # Errors
/// [`ServeError`]: nothing is served.
pub async fn start(options: ServeOptions) -> Result<Running, ServeError> {
    let token = read_token(&options)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| ServeError::Listen { address: options.listen, error })?;
    let address = listener.local_addr().map_err(ServeError::Process)?;

    let (of_clients, calls) = connections();
    let catalog = Arc::new(Catalog::default());
    let opened = {
        let (options, catalog) = (options.clone(), Arc::clone(&catalog));
        tokio::task::spawn_blocking(move || {
            let opened = open(&options, &catalog, calls);
            if let Ok(runtime) = &opened {
                catalog.load(runtime).iter().for_each(|unread| (options.tell)(unread));
            }
            // Whoever waits for a definition waits no longer, also where nothing was opened.
            catalog.release();
            opened
        })
    };
    let opened = opened.await.map_err(|error| ServeError::Process(io::Error::other(error)))?;
    let runtime = Arc::new(opened?);
    let Some(sagas) = runtime.sagas() else {
        return Err(ServeError::Process(io::Error::other("the application was defined without sagas")));
    };
    let client = runtime.client();
    if let Some(folder) = &options.sagas {
        let unread = |path: &PathBuf, error| ServeError::Folder { path: path.clone(), error };
        for file in catalog::files(folder).map_err(|error| unread(folder, error))? {
            let text = catalog::text_of(&file).map_err(|error| unread(&file, error))?;
            let put = catalog.put(&client, &text, &file.display().to_string(), None).await;
            put.map_err(|error| ServeError::Definition { file, error })?;
        }
    }

    let (draining, drained) = watch::channel(false);
    let server = Arc::new(Server {
        runtime,
        sagas,
        client,
        catalog,
        token,
        dir: options.dir,
        mirror: options.mirror,
        draining: drained.clone(),
        alarms: AtomicU64::new(0),
        set_aside: AtomicU64::new(0),
        streams: AtomicUsize::new(0),
    });
    let watching = tokio::spawn(watch_notices(Arc::clone(&server), options.tell));
    let router = router(Arc::clone(&server));
    let serving =
        tokio::spawn(listen::serve(listener, router, drained, of_clients, options.drain, options.tell));
    Ok(Running { address, draining, serving, watching, server })
}

/// Counts the notices of the store and passes them on.
async fn watch_notices(server: Arc<Server>, tell: fn(&str)) {
    let mut draining = server.draining.clone();
    loop {
        for notice in server.runtime.notices() {
            match &notice {
                UnitNotice::CheckpointWritten { .. } => {}
                UnitNotice::Partition(_, Notice::Alarm { detail }) => {
                    server.alarms.fetch_add(1, Ordering::Relaxed);
                    tell(&format!("alarm: {detail}"));
                }
                UnitNotice::Partition(_, Notice::SetAside { evidence, .. }) => {
                    server.set_aside.fetch_add(1, Ordering::Relaxed);
                    tell(&format!("an input was set aside: {evidence}"));
                }
                UnitNotice::Partition(partition, notice) => tell(&format!("{partition}: {notice:?}")),
                notice => tell(&format!("store: {notice:?}")),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
            _ = draining.wait_for(|draining| *draining) => return,
        }
    }
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Durable commits of its store.
    pub(crate) fn commits(&self) -> u64 {
        self.server.runtime.commits()
    }

    /// An orderly end: no new request is taken, those in flight are answered, the store is
    /// checkpointed. True when all that was possible in time; nothing is lost otherwise either.
    pub async fn stop(self) -> bool {
        let Self { draining, serving, watching, server, .. } = self;
        draining.send_replace(true);
        let answered = serving.await.unwrap_or(false);
        // It ends by itself once the server drains.
        let _ = watching.await;
        let runtime = Arc::clone(&server.runtime);
        drop(server);
        let close = move || Arc::into_inner(runtime).is_some_and(|runtime| runtime.close(CLOSE));
        let closed = tokio::task::spawn_blocking(close).await;
        answered && closed.unwrap_or(false)
    }
}

/// Serves until a SIGTERM or SIGINT, then ends in order. `ready` is told the address once requests
/// are answered.
///
/// # Errors
/// [`ServeError`]: it did not start.
pub fn serve(options: ServeOptions, ready: impl FnOnce(SocketAddr)) -> Result<bool, ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(ServeError::Process)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Process)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Process)?;
        let running = start(options).await?;
        ready(running.address());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(running.stop().await)
    })
}
