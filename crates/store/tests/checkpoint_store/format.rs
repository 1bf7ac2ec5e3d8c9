//! The decoder never panics and takes nothing that was not written.

use proptest::prelude::*;
use rallypoint_base::id::{Epoch, LogId, Position, Version};
use rallypoint_base::time::Time;
use rallypoint_store::checkpoint::{Chunk, FileKind, Manifest, file_name, parse_name};

fn manifest(chunks: Vec<(u32, u64)>, version: u64, program: String) -> Manifest {
    Manifest {
        identity: crate::rig::IDENTITY,
        log: LogId(7),
        version: Version(version),
        position: Position(99),
        epoch: Epoch(3),
        base: version.checked_sub(1).filter(|&base| base > 0).map(Version),
        schema: 4,
        created: Time(5),
        program,
        chunks: chunks.into_iter().map(|(len, hash)| Chunk { len: 1 + len % (256 * 1024), hash }).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Manifest::decode(&bytes).is_err());
        if let Ok(name) = std::str::from_utf8(&bytes) {
            let _ = parse_name(&format!("cp-{name}"));
        }
    }

    #[test]
    fn what_is_written_is_read_and_every_changed_byte_is_noticed(
        chunks in proptest::collection::vec(any::<(u32, u64)>(), 0..40),
        version in 1u64..u64::MAX,
        program in ".{0,20}",
        header in proptest::collection::vec(any::<u8>(), 0..500),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let manifest = manifest(chunks, version, program);
        let mut encoded = manifest.encode(&header).to_vec();
        prop_assert_eq!(encoded.len() % 4096, 0);
        let (decoded, state) = Manifest::decode(&encoded).unwrap();
        prop_assert_eq!(&decoded, &manifest);
        prop_assert_eq!(state, &header[..]);
        let used = encoded.len() - encoded.iter().rev().take_while(|&&byte| byte == 0).count();
        let at = at.index(used);
        encoded[at] ^= 1 << bit;
        prop_assert!(Manifest::decode(&encoded).is_err(), "byte {at}");
        encoded[at] ^= 1 << bit;
        prop_assert!(Manifest::decode(&encoded[..at]).is_err());
    }

    #[test]
    fn sound_checksums_over_nonsense_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut file = b"RALLYCPM".to_vec();
        file.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend_from_slice(&(body.len() as u64).to_le_bytes());
        file.extend_from_slice(&0u64.to_le_bytes());
        file.extend_from_slice(&rallypoint_base::hash::xxh3(&body).to_le_bytes());
        file.extend_from_slice(&rallypoint_base::hash::xxh3(b"").to_le_bytes());
        let hash = rallypoint_base::hash::xxh3(&file);
        file.extend_from_slice(&hash.to_le_bytes());
        file.extend_from_slice(&body);
        prop_assert!(Manifest::decode(&file).is_err());
    }

    #[test]
    fn names_are_read_as_they_are_written(log in any::<u16>(), version in any::<u64>(), n in any::<u32>()) {
        for kind in [FileKind::Part, FileKind::Manifest, FileKind::ManifestTemp, FileKind::Failed(n)] {
            let name = file_name(LogId(log), Version(version), kind);
            prop_assert_eq!(parse_name(&name), Some((LogId(log), Version(version), kind)));
        }
    }
}
