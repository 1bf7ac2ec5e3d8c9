//! A service's socket and database. Whoever asks on this machine may: there is no token, and so it
//! listens on the loopback only.

use crate::chaos::{Chaos, Dice};
use crate::respond::Books;
use crate::{inventory, payment, shipping};
use rallypoint_barrier::guard;
use rusqlite::Connection;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Reserves goods.
    Inventory,
    /// Charges cards.
    Payment,
    /// Prints labels and sends parcels.
    Shipping,
}

/// Where a service lives.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its database; made if it is missing.
    pub db: PathBuf,
    /// Its address, on the loopback. Port 0: any that is free.
    pub listen: SocketAddr,
    /// Faults on purpose.
    pub chaos: Option<Chaos>,
}

/// Why a service does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The database cannot be opened.
    #[error("cannot open the database {}: {source}; choose a file that can be written", db.display())]
    Database {
        /// Which.
        db: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The address is not on the loopback.
    #[error("{0} is not on the loopback, and these services ask nobody who he is; use 127.0.0.1")]
    NotLoopback(SocketAddr),
    /// The share is none.
    #[error("chaos is a share from 0 to 1, not {0}")]
    NoShare(f64),
    /// The socket cannot be used.
    #[error("cannot listen on {address}: {source}; choose another port, or 0 for any")]
    Socket {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The runtime cannot start, or nobody reads what is printed.
    #[error("cannot start: {0}")]
    Start(#[source] std::io::Error),
}

/// A service that has its socket: requests wait until it runs.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: axum::Router,
}

impl Server {
    /// Opens the database and the socket.
    pub async fn bind(service: Service, settings: &Settings) -> Result<Self, ServeError> {
        let Settings { db, listen, chaos } = settings;
        if !listen.ip().is_loopback() {
            return Err(ServeError::NotLoopback(*listen));
        }
        if let Some(chaos) = chaos.filter(|chaos| !(0.0..=1.0).contains(&chaos.share)) {
            return Err(ServeError::NoShare(chaos.share));
        }
        let connection =
            open(service, db).map_err(|source| ServeError::Database { db: db.clone(), source })?;
        let books = Books::new(connection, Dice::new(*chaos));
        let router = match service {
            Service::Inventory => inventory::router(books),
            Service::Payment => payment::router(books),
            Service::Shipping => shipping::router(books),
        };
        let socket = |source| ServeError::Socket { address: *listen, source };
        let listener = TcpListener::bind(listen).await.map_err(socket)?;
        let address = listener.local_addr().map_err(socket)?;
        Ok(Self { listener, address, router })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until the process ends or the future is dropped.
    pub async fn run(self) -> Result<(), ServeError> {
        let socket = |source| ServeError::Socket { address: self.address, source };
        axum::serve(self.listener, self.router).await.map_err(socket)
    }
}

/// Runs a service on a runtime of its own, and prints `listening on ADDRESS` when it is ready. It
/// may be killed at any instant.
pub fn serve(service: Service, settings: &Settings) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(ServeError::Start)?.block_on(async {
        let server = Server::bind(service, settings).await?;
        let mut out = std::io::stdout();
        writeln!(out, "listening on {}", server.address()).map_err(ServeError::Start)?;
        out.flush().map_err(ServeError::Start)?;
        server.run().await
    })
}

fn open(service: Service, db: &PathBuf) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(db)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // An answer that was given survives a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    guard::create_table(&connection)?;
    match service {
        Service::Inventory => inventory::create_tables(&connection)?,
        Service::Payment => payment::create_tables(&connection)?,
        Service::Shipping => shipping::create_tables(&connection)?,
    }
    Ok(connection)
}
