//! A look at worker processes: transfers between partitions of different workers, with kills.
use rallypoint_engine::actor::{Actor, Cx};
use rallypoint_host::app::App;
use rallypoint_host::remote::RemoteClient;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Account {
    cents: i64,
    moves: u64,
}
#[derive(serde::Serialize, serde::Deserialize)]
enum Message {
    Transfer { to: String, cents: i64 },
    Credit { cents: i64 },
}
impl Actor for Account {
    const KIND: &'static str = "account";
    type Message = Message;
    type Reply = i64;
    type Error = ();
    fn handle(&mut self, message: Message, cx: &mut Cx<'_>) -> Result<i64, ()> {
        self.moves += 1;
        match message {
            Message::Transfer { to, cents } => {
                self.cents -= cents;
                cx.send::<Account>(&to, &Message::Credit { cents });
            }
            Message::Credit { cents } => self.cents += cents,
        }
        Ok(self.cents)
    }
}

fn app() -> App {
    App::define().actor::<Account>().layout(8, 4)
}

fn main() {
    if rallypoint_host::worker::is_worker() {
        std::process::exit(rallypoint_host::worker::run(app()).into());
    }
    let dir = std::env::args().nth(1).unwrap_or("/tmp/workers-smoke".into());
    let n: u64 = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let kill_ms: u64 = std::env::args().nth(3).and_then(|n| n.parse().ok()).unwrap_or(300);
    let _ = std::fs::remove_dir_all(&dir);
    let start = Instant::now();
    let supervisor = app().supervise(&dir, 4).unwrap();
    println!("4 workers ready in {:?}", start.elapsed());
    let remote = RemoteClient::connect(dir.as_ref(), None).unwrap();
    let client = remote.client();
    let start = Instant::now();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut kills = 0;
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0;
            let mut k = 0;
            while kill_ms > 0 && !done.load(std::sync::atomic::Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(kill_ms));
                if supervisor.kill(k % 4).is_some() {
                    kills += 1;
                }
                k += 1;
            }
            kills
        });
        let mut window = VecDeque::new();
        for i in 0..n {
            let from = format!("a{}", (i * 7919) % 1000);
            let to = format!("a{}", (i * 104729 + 1) % 1000);
            window.push_back(client.ask::<Account>(&from, &Message::Transfer { to, cents: 1 }));
            if window.len() == 1024 {
                window.pop_front().unwrap().wait().unwrap();
            }
        }
        for pending in window {
            pending.wait().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        kills = killer.join().unwrap();
    });
    let t = start.elapsed();
    println!("{n} transfers in {t:?} = {:.0}/s with {kills} kills", n as f64 / t.as_secs_f64());
    for notice in supervisor.notices() {
        println!("{notice}");
    }
    let start = Instant::now();
    println!("stopped orderly: {} in {:?}", supervisor.stop(Duration::from_secs(10)), start.elapsed());
    let rt = app().open(&dir).unwrap();
    assert!(rt.drain(Duration::from_secs(10)));
    let (mut cents, mut moves) = (0, 0);
    rt.each_actor(&mut |_, _, bytes| {
        let account: Account = rallypoint_engine::codec::Encoded::split(bytes).unwrap().decode().unwrap();
        cents += account.cents;
        moves += account.moves;
    });
    println!("sum {cents} (0), moves {moves} ({})", 2 * n);
    assert_eq!((cents, moves), (0, 2 * n));
}
