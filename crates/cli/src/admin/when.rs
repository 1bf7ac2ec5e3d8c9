//! Moments, as people write and read them.
//!
//! Decides that they are in UTC: an event log is read on other machines than its own.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// A moment after which something is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Since(u64);

impl Since {
    /// Nanoseconds since 1970.
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let wrong =
            || format!("{text:?} is neither a time ago (90s, 15m, 2h, 7d) nor a date (2026-01-31T12:00:00)");
        if let Some((at, unit)) = text.char_indices().next_back()
            && let Some(seconds) = match unit {
                's' => Some(1),
                'm' => Some(60),
                'h' => Some(3600),
                'd' => Some(DAY),
                _ => None,
            }
        {
            let count: u64 = text[..at].parse().map_err(|_| wrong())?;
            let ago = count.saturating_mul(seconds).saturating_mul(SECOND);
            return Ok(Self(now.saturating_sub(ago)));
        }
        let (date, time) = text.trim_end_matches('Z').split_once(['T', ' ']).unwrap_or((text, "0:0:0"));
        let numbers = |text: &str, separator: char| -> Option<Vec<u64>> {
            text.split(separator).map(|number| number.parse().ok()).collect()
        };
        let (date, time) = (numbers(date, '-').ok_or_else(wrong)?, numbers(time, ':').ok_or_else(wrong)?);
        let (&[year, month, day], &[hour, minute, ..]) = (&date[..], &time[..]) else { return Err(wrong()) };
        let second = time.get(2).copied().unwrap_or(0);
        let possible = (1970..10_000).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && (hour < 24 && minute < 60 && second < 60);
        if !possible {
            return Err(wrong());
        }
        let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
        Ok(Self(seconds * SECOND))
    }
}

/// Days from 1970 to a date (of the years from 1970 on).
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March here, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year / 400;
    let of_era = year % 400;
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// `2026-01-31T12:00:00.123Z`.
pub(crate) fn moment(nanos: u64) -> String {
    let seconds = nanos / SECOND;
    let (of_day, shifted) = (seconds % DAY, seconds / DAY + 719_468);
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let milli = nanos / 1_000_000 % 1000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::{DAY, SECOND, Since, moment};

    #[test]
    fn dates_are_read_and_written_alike() {
        for day in (0..60_000).step_by(17).chain([11_016, 11_017, 19_782, 19_783]) {
            let text = moment(day * DAY * SECOND + 3_661 * SECOND);
            assert_eq!(text[..19].parse::<Since>().unwrap().nanos(), (day * DAY + 3_661) * SECOND, "{text}");
        }
        assert_eq!(moment(951_782_400 * SECOND), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn times_ago_and_nonsense() {
        let (old, new): (Since, Since) = ("2h".parse().unwrap(), "90s".parse().unwrap());
        assert!(old.nanos() < new.nanos());
        for nonsense in ["", "h", "2x", "2026-13-01", "2026-01-31T25:00", "yesterday", "-1d"] {
            assert!(nonsense.parse::<Since>().is_err(), "{nonsense}");
        }
        assert_eq!("1970-01-02".parse::<Since>().unwrap().nanos(), DAY * SECOND);
    }
}
