//! `/v1/events`: the durable event log of the store, as a stream.
//!
//! Decides what an event's id is: for each journal directory, in order, batch and place of the last
//! event given. Both only grow and are never given twice, so that a client that comes back with
//! `Last-Event-ID`, to this process or a later one, misses nothing that the bounded log still holds.

use super::Server;
use super::problem::{Kind, Problem, Problems};
use crate::moment::moment;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use rallypoint_host::store_tools::{self as tools, EventLine, ToolError};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use utoipa::ToSchema;

/// How often the log is looked at for a stream.
const EVERY: Duration = Duration::from_millis(500);
/// Streams at once: each reads the log.
const STREAMS: usize = 32;

/// What stands in `data` of an event.
#[derive(Serialize, ToSchema)]
struct EventView {
    /// `alarm`, `opened`, `repair`, `set_aside`, `copy_lost`, …
    kind: &'static str,
    #[schema(format = DateTime)]
    time: String,
    /// Journal directory of the store.
    directory: String,
    /// The particulars.
    fields: BTreeMap<String, String>,
}

/// Position in each journal directory's log, by the directory's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place(BTreeMap<String, (u64, u32)>);

impl Place {
    fn read(text: &str) -> Option<Self> {
        let mut place = BTreeMap::new();
        for part in text.split('_') {
            let mut words = part.split('.');
            let (directory, batch, index) = (words.next()?, words.next()?, words.next()?);
            if directory.is_empty() || words.next().is_some() {
                return None;
            }
            place.insert(directory.to_owned(), (batch.parse().ok()?, index.parse().ok()?));
        }
        Some(Self(place))
    }

    fn write(&self) -> String {
        let parts = self.0.iter().map(|(directory, (batch, index))| format!("{directory}.{batch}.{index}"));
        parts.collect::<Vec<_>>().join("_")
    }

    fn is_after(&self, event: &EventLine) -> bool {
        self.0.get(&event.directory).is_none_or(|last| event.position > *last)
    }
}

/// One open stream.
struct Follower {
    server: Arc<Server>,
    place: Place,
    ready: VecDeque<EventLine>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.server.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Follower {
    async fn look(&self) -> Result<Vec<EventLine>, ToolError> {
        let (dir, mirror) = (self.server.dir.clone(), self.server.mirror.clone());
        let read = tokio::task::spawn_blocking(move || tools::events(&dir, mirror.as_deref()));
        // A look that panicked found nothing; the next one may.
        read.await.unwrap_or_else(|_| Ok(tools::EventList::default())).map(|list| list.events)
    }

    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        let mut draining = self.server.draining.clone();
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.place.0.insert(event.directory.clone(), event.position);
                let view = EventView {
                    kind: event.kind,
                    time: moment(event.time),
                    directory: event.directory,
                    fields: event.fields,
                };
                // Nothing in it can fail to be written.
                let data = serde_json::to_string(&view).unwrap_or_default();
                let event = Event::default().id(self.place.write()).event(view.kind).data(data);
                return Some((Ok(event), self));
            }
            if *draining.borrow() {
                return None;
            }
            if let Ok(events) = self.look().await {
                let place = &self.place;
                self.ready = events.into_iter().filter(|event| place.is_after(event)).collect();
            }
            if self.ready.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    _ = draining.wait_for(|draining| *draining) => return None,
                }
            }
        }
    }
}

/// Follow the durable event log
///
/// A stream of server-sent events: alarms, repairs, inputs set aside, restarts, as `rallypoint events`
/// lists them; not each step of each saga. It begins with the oldest event that the bounded log holds,
/// or after `Last-Event-ID`. An event is given once it is durable.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "operations",
    params(
        ("Last-Event-ID" = Option<String>, Header, description = "The last event that was received",
         pattern = "^[A-Za-z0-9]+\\.[0-9]{1,9}\\.[0-9]{1,9}(_[A-Za-z0-9]+\\.[0-9]{1,9}\\.[0-9]{1,9})*$")
    ),
    responses(
        (status = 200, description = "The events; `data` is an EventView.", body = String,
         content_type = "text/event-stream"),
        Problems
    )
)]
pub(super) async fn stream(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let place = match headers.get("last-event-id") {
        None => Place::default(),
        Some(text) => text.to_str().ok().and_then(Place::read).ok_or_else(|| {
            Problem::malformed("Last-Event-ID is none that this stream gave: begin without it")
        })?,
    };
    if server.streams.fetch_add(1, Ordering::Relaxed) >= STREAMS {
        server.streams.fetch_sub(1, Ordering::Relaxed);
        return Err(Problem::new(Kind::Busy, format!("{STREAMS} streams of events are open already")));
    }
    let follower = Follower { server, place, ready: VecDeque::new() };
    Ok(Sse::new(stream::unfold(follower, Follower::next)).keep_alive(KeepAlive::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let place = Place([("j0".to_owned(), (3, 1)), ("j1".to_owned(), (9, 0))].into());
        assert_eq!(Place::read(&place.write()), Some(place.clone()));
        let event = |directory: &str, position| EventLine {
            directory: directory.into(),
            position,
            time: 0,
            kind: "alarm",
            fields: BTreeMap::new(),
        };
        assert!(!place.is_after(&event("j0", (3, 1))) && place.is_after(&event("j0", (3, 2))));
        assert!(place.is_after(&event("j0", (4, 0))) && place.is_after(&event("j2", (1, 0))));
        for nonsense in ["", "j0", "j0.1", "j0.x.1", ".1.1", "j0.1.1_", "j0.1.1.1", "j0.1.-1"] {
            assert_eq!(Place::read(nonsense), None, "{nonsense}");
        }
    }
}
