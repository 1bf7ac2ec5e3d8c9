//! A small bank in threads, with the administrator's commands mounted.
//!
//! Decides nothing about money: it sends transfers between accounts of [`bank`] and adds up what
//! they have afterwards. Run it again on the same directory, or kill it and run it again: the sum is
//! what the accounts were opened with.

use bank::{Account, Message, Reply};
use rallypoint::{App, Pending};
use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::Duration;

const ACCOUNTS: u64 = 100;
const OPENING: u64 = 100_000;
const TRANSFERS: u64 = 10_000;
const IN_FLIGHT: usize = 256;

const USAGE: &str = "\
bank-example run DIR           10,000 transfers between 100 accounts
bank-example admin DIR ...     quarantine list, quarantine retry, quarantine drop";

/// The same application for both: what was set aside is delivered to the same actors.
fn application() -> App {
    App::define().actor::<Account>()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run", dir] => match run(dir) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(2)
            }
        },
        ["admin", dir, ..] => ExitCode::from(application().admin(dir, &arguments[2..])),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn name(number: u64) -> String {
    format!("account-{:02}", number % ACCOUNTS)
}

/// Whether the money is all there.
fn run(dir: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let runtime = application().open(dir)?;
    let client = runtime.client();
    // Every account is opened, so that the sum is known: 0 and 1, 2 and 3, ...
    for number in (0..ACCOUNTS).step_by(2) {
        let open = Message::Open { to: name(number + 1), opening: OPENING };
        client.ask::<Account>(&name(number), &open).wait()?;
    }
    let mut in_flight: VecDeque<Pending<Account>> = VecDeque::new();
    let mut refused = 0;
    let mut settle = |pending: Pending<Account>| -> Result<(), Box<dyn std::error::Error>> {
        refused += u64::from(pending.wait()? == Reply::Refused);
        Ok(())
    };
    for line in 0..TRANSFERS {
        let (from, to) = (line * 7, line * 7 + 1 + line % (ACCOUNTS - 1));
        let amount = 1 + line * 37 % 5_000;
        let transfer = Message::Transfer { line, to: name(to), amount, opening: OPENING };
        in_flight.push_back(client.ask::<Account>(&name(from), &transfer));
        if in_flight.len() == IN_FLIGHT
            && let Some(oldest) = in_flight.pop_front()
        {
            settle(oldest)?;
        }
    }
    in_flight.into_iter().try_for_each(&mut settle)?;
    // An answer says that the debit is durable. The credits arrive in any case; here they are awaited.
    let arrived = runtime.drain(Duration::from_secs(30));
    let mut sum = 0;
    for number in 0..ACCOUNTS {
        if let Reply::View(view) = client.ask::<Account>(&name(number), &Message::Read).wait()? {
            sum += view.balance;
        }
    }
    let expected = u128::from(ACCOUNTS * OPENING);
    println!("{TRANSFERS} transfers, {refused} refused; {sum} cents in {ACCOUNTS} accounts");
    let _ = runtime.close(Duration::from_secs(30));
    if !arrived || sum != expected {
        eprintln!("there should be {expected} cents");
    }
    Ok(arrived && sum == expected)
}
