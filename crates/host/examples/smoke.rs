//! A look at latency and rate of the threads host.
use rallypoint_engine::actor::{Actor, Cx};
use rallypoint_host::app::App;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Counter {
    total: u64,
}
#[derive(serde::Serialize, serde::Deserialize)]
struct Add {
    amount: u64,
    #[serde(with = "serde_bytes_like")]
    pad: Vec<u8>,
}
mod serde_bytes_like {
    pub fn serialize<S: serde::Serializer>(b: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(b)
    }
    pub fn deserialize<'d, D: serde::Deserializer<'d>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct V;
        impl serde::de::Visitor<'_> for V {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }
        }
        d.deserialize_bytes(V)
    }
}
impl Actor for Counter {
    const KIND: &'static str = "counter";
    type Message = Add;
    type Reply = u64;
    type Error = ();
    fn handle(&mut self, add: Add, _: &mut Cx<'_>) -> Result<u64, ()> {
        self.total += add.amount;
        Ok(self.total)
    }
}

fn main() {
    let dir = std::env::args().nth(1).unwrap_or("/tmp/smoke".into());
    let _ = std::fs::remove_dir_all(&dir);
    let start = Instant::now();
    let rt = App::define().actor::<Counter>().layout(2, 1).open(&dir).unwrap();
    println!("opened in {:?}", start.elapsed());
    let client = rt.client();
    let keys: Vec<String> = (0..10_000).map(|k| format!("key-{k}")).collect();
    let mut times = Vec::new();
    for i in 0..2000 {
        let start = Instant::now();
        client.ask::<Counter>(&keys[i], &Add { amount: 1, pad: vec![0; 80] }).wait().unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    println!("1 client: p50 {:?} p99 {:?}", times[1000], times[1980]);
    let n: u64 = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let start = Instant::now();
    let mut window = VecDeque::new();
    for i in 0..n {
        let key = &keys[(i as usize * 7919) % keys.len()];
        window.push_back(client.ask::<Counter>(key, &Add { amount: 1, pad: vec![0; 80] }));
        if window.len() == 1024 {
            window.pop_front().unwrap().wait().unwrap();
        }
    }
    for pending in window {
        pending.wait().unwrap();
    }
    let t = start.elapsed();
    println!(
        "1024 in flight: {n} in {t:?} = {:.0}/s; checkpoints {} inline {}",
        n as f64 / t.as_secs_f64(),
        rt.checkpoints_written(),
        rt.inline_drives()
    );
    for notice in rt.notices().iter().take(5) {
        println!("{notice:?}");
    }
    drop(rt);
    let start = Instant::now();
    let rt = App::define().actor::<Counter>().open(&dir).unwrap();
    println!("reopened in {:?}: replayed {}", start.elapsed(), rt.reports()[0].replayed);
    let mut sum = 0;
    let client = rt.client();
    for key in &keys {
        sum += client.ask::<Counter>(key, &Add { amount: 0, pad: vec![] }).wait().unwrap();
    }
    println!("sum {sum} expected {}", n + 2000);
    assert_eq!(sum, n + 2000);
    let start = Instant::now();
    println!("closed orderly: {} in {:?}", rt.close(Duration::from_secs(10)), start.elapsed());
    let start = Instant::now();
    let rt = App::define().actor::<Counter>().open(&dir).unwrap();
    println!("reopened in {:?}: replayed {}", start.elapsed(), rt.reports()[0].replayed);
}
