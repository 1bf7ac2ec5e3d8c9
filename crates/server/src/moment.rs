//! Moments (RFC 3339, UTC) and lengths of time, as the API writes and reads them.

use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// `2026-01-31T12:00:00.123Z`, from nanoseconds since 1970.
///
/// ```
/// assert_eq!(rallypoint_server::moment::moment(951_782_400_000_000_000), "2000-02-29T00:00:00.000Z");
/// ```
#[must_use]
pub fn moment(nanos: u64) -> String {
    let seconds = nanos / SECOND;
    // Years begin in March here, so that the leap day is the last of its year.
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

/// `250ms`, `10s` or `2m`, at most 5 minutes.
///
/// # Errors
/// What is wrong with the text.
pub fn patience(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(300);
    let wrong = || format!("{text:?} is no length of time: write 250ms, 10s or 2m, at most 5m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let length = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(wrong()),
    };
    if length > LONGEST { Err(wrong()) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(patience("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(patience("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(patience("5m"), Ok(Duration::from_secs(300)));
        for nonsense in ["", "s", "10", "6m", "-1s", "1h", "1 s", "99999999999999999999s", "٣s"] {
            assert!(patience(nonsense).is_err(), "{nonsense}");
        }
    }
}
