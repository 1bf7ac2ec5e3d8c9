//! Each kind of line a file may hold, and random ones against the writer of the `csv` crate.

use super::{AMOUNT, Content, ContentHash, HEADER, Input, InputError, Line, Lines, Reason, Transfer};
use proptest::prelude::*;
use rallypoint_base::hash::xxh3;
use std::fs;
use std::path::Path;

/// The lines of a file with the right header.
fn read(body: impl AsRef<[u8]>) -> Vec<Line> {
    let bytes = [HEADER.as_bytes(), b"\n", body.as_ref()].concat();
    whole(&bytes).unwrap()
}

fn whole(bytes: &[u8]) -> Result<Vec<Line>, InputError> {
    let hash = ContentHash(xxh3(bytes));
    // A small buffer, so that lines lie across its edge.
    let reader = std::io::BufReader::with_capacity(7, bytes);
    Lines::new(Path::new("in.csv"), reader, Some(hash))?.collect()
}

/// One word for each line: `2:ann>bob=5`, `3:again`, `4:no`.
fn said(body: impl AsRef<[u8]>) -> String {
    let word = |line: Line| match line.content {
        Content::Transfer(Transfer { from, to, amount, .. }) => {
            format!("{}:{from}>{to}={amount}", line.number)
        }
        Content::Duplicate(_) => format!("{}:again", line.number),
        Content::Rejected(_) => format!("{}:no", line.number),
    };
    read(body).into_iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The reason for which the only line is rejected.
fn reason(line: impl AsRef<[u8]>) -> String {
    let lines = read(line);
    match lines.as_slice() {
        [Line { number: 2, content: Content::Rejected(reason) }] => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_ordinary_file() {
    assert_eq!(said("1,ann,bob,5\n2,bob,cleo,7\n"), "2:ann>bob=5 3:bob>cleo=7");
}

#[test]
fn nothing_after_the_header_is_no_line() {
    assert_eq!(said(""), "");
    assert_eq!(whole(HEADER.as_bytes()).unwrap(), []);
    assert_eq!(whole(format!("{HEADER}\r\n").as_bytes()).unwrap(), []);
}

#[test]
fn endings_of_lines_and_of_the_file() {
    assert_eq!(said("1,ann,bob,5"), "2:ann>bob=5");
    assert_eq!(said("1,ann,bob,5\r\n2,bob,ann,6\r\n"), "2:ann>bob=5 3:bob>ann=6");
    assert_eq!(said("1,ann,bob,5\r"), "2:ann>bob=5");
    assert_eq!(said("1,ann,bob,\"5\"\r\n2,bob,ann,6"), "2:ann>bob=5 3:bob>ann=6");
    let bytes = format!("\u{feff}{HEADER}\r\n1,ann,bob,5\r\n");
    assert_eq!(whole(bytes.as_bytes()).unwrap().len(), 1);
}

#[test]
fn quoted_fields_hold_anything() {
    assert_eq!(said("1,\"ann, \"\"the\"\" first\",bob,5\n"), "2:ann, \"the\" first>bob=5");
    assert_eq!(said("\"1\",\"ann\",\"bob\",\"5\"\n"), "2:ann>bob=5");
    // The number is that of the line on which the record starts; the next one knows how long it was.
    assert_eq!(said("1,\"a\nn\r\nn\",bob,5\n2,bob,ann,6\n"), "2:a\nn\r\nn>bob=5 5:bob>ann=6");
    assert_eq!(said("1,an\"n,bob,5\n"), "2:an\"n>bob=5");
    assert_eq!(said("1, ann,bob ,5\n"), "2: ann>bob =5");
}

#[test]
fn a_quote_that_is_never_closed_costs_one_line() {
    assert_eq!(said("1,\"ann,bob,5\n2,bob,ann,6\n"), "2:no 3:bob>ann=6");
    // The next quoted field would close it; the text that follows shows the mistake.
    assert_eq!(said("1,\"ann,bob,5\n2,\"bob\",ann,6\n3,a,b,\"7\"\n"), "2:no 3:bob>ann=6 4:a>b=7");
    let many: String = (2..1_000).map(|id| format!("{id},a,b,1\n")).collect();
    let lines = read(format!("1,\"ann,bob,5\n{many}"));
    assert_eq!(lines.len(), 999);
    assert!(lines[1..].iter().all(|line| matches!(line.content, Content::Transfer(_))));
    assert_eq!(reason("1,\"ann,bob,5"), "a quote is opened and never closed");
    assert_eq!(reason("1,\"ann\"x,bob,5"), "there is text between a closing quote and the next comma");
}

#[test]
fn reasons_name_what_was_found() {
    let id = "is not a whole number from 0 to 18446744073709551615";
    assert_eq!(reason("x,ann,bob,5"), format!("the id `x` {id}"));
    for wrong in ["", "-1", "+1", " 1", "1.0", "18446744073709551616", "１"] {
        assert!(reason(format!("{wrong},ann,bob,5")).ends_with(id), "{wrong}");
    }
    let amount = "is not a whole number of cents from 1 to 9007199254740992";
    for wrong in ["", "0", "-5", "1.5", "1e3", "9007199254740993", "5 "] {
        assert_eq!(reason(format!("1,ann,bob,{wrong}")), format!("the amount `{wrong}` {amount}"));
    }
    assert_eq!(reason("1,ann,bob"), "4 fields are needed, not 3");
    assert_eq!(reason("1,ann,bob,5,"), "4 fields are needed, not 5");
    assert_eq!(reason("nonsense"), "4 fields are needed, not 1");
    assert_eq!(reason("\n"), "the line is empty");
    assert_eq!(reason("1,,bob,5"), "the account name in `from` is empty");
    assert_eq!(reason("1,ann,\"\",5"), "the account name in `to` is empty");
    assert_eq!(reason("1,ann,ann,5"), "`from` and `to` are the same account `ann`");
    let long = "ü".repeat(33);
    let expected = "the account name in `to` has 66 bytes; at most 64 are allowed";
    assert_eq!(reason(format!("1,ann,{long},5")), expected);
}

#[test]
fn limits_are_inclusive() {
    let name = "ü".repeat(32);
    let expected = Transfer { id: u64::MAX, from: "a".to_owned(), to: name.clone(), amount: AMOUNT };
    let lines = read(format!("18446744073709551615,a,{name},9007199254740992\n"));
    assert_eq!(lines[0].content, Content::Transfer(expected));
    assert_eq!(said("0,a,b,1\n"), "2:a>b=1");
}

#[test]
fn what_is_no_text_costs_one_line() {
    assert_eq!(said(b"1,ann,b\xffb,5\n2,ann,bob,6\n"), "2:no 3:ann>bob=6");
    assert_eq!(reason(b"1,ann,b\xffb,5"), "the line is not UTF-8");
    // The two halves of one character on both sides of a comma.
    assert_eq!(reason(b"1,ann\xc3,\xa9bob,5"), "the line is not UTF-8");
}

#[test]
fn a_line_without_end_costs_one_line_and_no_memory() {
    let long = "x".repeat(1 << 20);
    assert_eq!(said(format!("1,{long},bob,5\n2,ann,bob,6\n")), "2:no 3:ann>bob=6");
    assert_eq!(said(format!("1,\"ann\n{long}\",bob,5\n2,ann,bob,6\n")), "2:no 3:no 4:ann>bob=6");
    assert_eq!(reason(&long), "the line is longer than 1024 bytes");
}

#[test]
fn an_id_seen_before_is_a_duplicate_unless_that_line_was_rejected() {
    assert_eq!(said("1,ann,bob,5\n1,ann,bob,5\n01,x,y,9\n"), "2:ann>bob=5 3:again 4:again");
    assert_eq!(said("1,ann,ann,5\n1,ann,bob,0\n1,ann,bob,5\n"), "2:no 3:no 4:ann>bob=5");
    // A duplicate that would be rejected is rejected.
    assert_eq!(said("1,ann,bob,5\n1,ann,bob,x\n"), "2:ann>bob=5 3:no");
    let lines = read("7,ann,bob,5\n7,cleo,dan,9\n");
    let expected = Transfer { id: 7, from: "cleo".to_owned(), to: "dan".to_owned(), amount: 9 };
    assert_eq!(lines[1].content, Content::Duplicate(expected));
}

#[test]
fn a_wrong_header_is_named() {
    let found = |bytes: &[u8]| match whole(bytes) {
        Err(InputError::Header { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(b""), "nothing (it is empty)");
    assert_eq!(found(b"\n"), "an empty line");
    assert_eq!(found(b"1,ann,bob,5\n"), "`1,ann,bob,5`");
    assert_eq!(found(b"id,from,to\n"), "`id,from,to`");
    assert_eq!(found(b"id,from,to,amount,note\n"), "`id,from,to,amount,note`");
    assert_eq!(found(b"ID,From,To,Amount\n"), "`ID,From,To,Amount`");
    assert_eq!(found(b"id, from, to, amount\n"), "`id, from, to, amount`");
    assert_eq!(found("x".repeat(5_000).as_bytes()), format!("`{}..`", "x".repeat(40)));
    assert!(whole(b"\"id\",from,to,amount\n").is_ok());
    let said = whole(b"a,b\n").unwrap_err().to_string();
    assert_eq!(
        said,
        "the input in.csv begins with `a,b`, not with the header `id,from,to,amount`; make that its first line"
    );
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Input::open(folder.path()), Err(InputError::NotAFile { .. })));
    let missing = Input::open(&folder.path().join("no.csv")).unwrap_err();
    assert!(missing.to_string().contains("no.csv"), "{missing}");
    assert!(matches!(missing, InputError::Read { .. }));
}

#[test]
fn a_file_that_changes_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.csv");
    fs::write(&path, format!("{HEADER}\n1,ann,bob,5\n")).unwrap();
    let input = Input::open(&path).unwrap();
    assert_eq!(input.hash(), ContentHash(xxh3(&fs::read(input.path()).unwrap())));
    assert!(input.lines().unwrap().all(|line| line.is_ok()));
    fs::write(&path, format!("{HEADER}\n1,ann,bob,6\n")).unwrap();
    let last = input.lines().unwrap().last();
    assert!(matches!(last, Some(Err(InputError::Changed { .. }))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_a_csv_writer_writes_is_read_back(
        names in prop::collection::vec(("[a,\"\n\r ü]{1,20}", "[b,\"\n\r ü]{1,20}"), 1..20),
    ) {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(HEADER.split(',')).unwrap();
        for (id, (from, to)) in names.iter().enumerate() {
            writer.write_record([id.to_string().as_str(), from, to, "1"]).unwrap();
        }
        let bytes = writer.into_inner().unwrap();
        let lines = whole(&bytes).unwrap();
        prop_assert_eq!(lines.len(), names.len());
        for (line, (from, to)) in lines.into_iter().zip(names) {
            match line.content {
                Content::Transfer(read) => prop_assert_eq!((read.from, read.to), (from, to)),
                Content::Rejected(Reason::SameAccount { .. }) => prop_assert_eq!(from, to),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_lose_a_line(body in "[1ab,\"\n\r\u{e9}]{0,200}", cut in 0_usize..200) {
        let mut bytes = format!("{HEADER}\n{body}").into_bytes();
        // Perhaps in the middle of a character.
        bytes.truncate((HEADER.len() + 1 + cut).min(bytes.len()));
        let lines = whole(&bytes).unwrap();
        let physical = bytes.split(|&byte| byte == b'\n').count() as u64;
        prop_assert!(lines.is_sorted_by(|one, next| one.number < next.number));
        prop_assert!(lines.iter().all(|line| (2..=physical).contains(&line.number)));
        // Without quotes, every physical line is a line.
        if !bytes.contains(&b'"') {
            let open = u64::from(!bytes.ends_with(b"\n"));
            prop_assert_eq!(lines.len() as u64 + 1, physical - 1 + open);
        }
    }

    #[test]
    fn good_lines_survive_bad_neighbours(bad in "[1ab,\u{e9}]{0,30}\"?[ab,]{0,9}", id in 1_000_u64..) {
        let lines = read(format!("1,a,b,1\n{bad}\n{id},c,d,2\n"));
        let last = lines.last().unwrap();
        prop_assert_eq!(last.number, 4, "{:?}", bad);
        prop_assert!(matches!(&last.content, Content::Transfer(read) if read.from == "c"));
    }
}
