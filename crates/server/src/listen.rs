//! Connections: letting them in, and seeing them out.
//!
//! Decides how many there are at once, how long a client may take to say what it wants, and that at the
//! end each is told to finish what it is at. Never lets one client keep the server from ending: whoever
//! is not done in time is cut off.
//!
//! Invariant: once [`serve`] has returned, nothing of a connection is left, so that nobody but the
//! caller holds what its requests worked with.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a client may say nothing, or take for the head of a request.
const HEAD: Duration = Duration::from_secs(60);
/// How long no connection is taken after the system had none to give (no file descriptor left, say).
const BREATH: Duration = Duration::from_millis(100);

/// Lets clients in until `draining`, then sees them out within `patience`. True when all of them were
/// done by then.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    mut draining: watch::Receiver<bool>,
    most: usize,
    patience: Duration,
    tell: fn(&str),
) -> bool {
    let mut connections = JoinSet::new();
    let for_connections = draining.clone();
    loop {
        tokio::select! {
            // A sender that is gone is an end too.
            _ = draining.wait_for(|draining| *draining) => break,
            // What has ended is let go of at once.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            stream = next(&listener, tell), if connections.len() < most => {
                connections.spawn(converse(stream, router.clone(), for_connections.clone()));
            }
        }
    }
    // Nobody else comes.
    drop((listener, router));
    let seen_out = async { while connections.join_next().await.is_some() {} };
    let in_time = tokio::time::timeout(patience, seen_out).await.is_ok();
    connections.shutdown().await;
    in_time
}

async fn next(listener: &TcpListener, tell: fn(&str)) -> TcpStream {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                if !told {
                    tell(&format!("no connection can be taken: {error}"));
                }
                told = true;
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn converse(stream: TcpStream, router: Router, mut draining: watch::Receiver<bool>) {
    // An answer is written whole: it must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        // How a client broke off is its own affair.
        _ = connection.as_mut() => return,
        _ = draining.wait_for(|draining| *draining) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
