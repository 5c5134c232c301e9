//! Whatever arrives, decoding ends in a message or an error, never in a panic.

use mrm_proto::frame::{FrameError, Header, Kind};
use mrm_proto::hello::{ClientHello, ServerHello};
use mrm_proto::ids::RequestId;
use mrm_proto::name::NameError;
use mrm_proto::reply::Reply;
use mrm_proto::request::Request;
use mrm_proto::table::Table;
use proptest::prelude::*;

fn decode_all(header: &Header, body: &[u8]) {
    let _ = Request::decode(header, body);
    let _ = Reply::decode(header, body);
    let _ = ClientHello::decode(header, body);
    let _ = ServerHello::decode(header, body);
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail(kind in 0..Kind::ALL.len(), body in prop::collection::vec(any::<u8>(), 0..512)) {
        let body_bytes = u32::try_from(body.len()).expect("short");
        let header = Header { kind: Kind::ALL[kind], fds: 0, body_bytes, request: RequestId(1) };
        decode_all(&header, &body);
    }

    #[test]
    fn any_header_decodes_or_fails(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Header::decode(&bytes);
    }

    #[test]
    fn any_table_parses_or_fails(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut bytes = bytes;
        for (at, byte) in b"MRMT\x01\x00".iter().enumerate() {
            if let Some(slot) = bytes.get_mut(at) {
                *slot = *byte;
            }
        }
        if let Ok(table) = Table::parse(&bytes) {
            let _ = table.iter().count() + table.segment_names().len() + table.metadata().len();
            let _ = table.find("x");
        }
    }
}

#[test]
fn a_body_that_claims_a_gigantic_array_fails_without_allocating_it() {
    // OpenFiles {1: array(2^32) ...}
    let body = [0xa1, 0x01, 0x9b, 0, 0, 0, 1, 0, 0, 0, 0];
    let header = Header {
        kind: Kind::OpenFiles,
        fds: 0,
        body_bytes: 11,
        request: RequestId(1),
    };
    assert!(matches!(
        Request::decode(&header, &body),
        Err(FrameError::Body { .. })
    ));
}

#[test]
fn bytes_after_the_message_are_refused() {
    let header = Header {
        kind: Kind::Closed,
        fds: 0,
        body_bytes: 2,
        request: RequestId(1),
    };
    assert!(matches!(
        Reply::decode(&header, &[0xa0, 0x00]),
        Err(FrameError::Body { .. })
    ));
    assert!(matches!(
        Reply::decode(&header, &[0xa0]),
        Err(FrameError::Truncated { .. })
    ));
}

#[test]
fn requests_do_not_decode_as_replies() {
    let header = Header {
        kind: Kind::Open,
        fds: 0,
        body_bytes: 1,
        request: RequestId(1),
    };
    assert_eq!(
        Reply::decode(&header, &[0xa0]),
        Err(FrameError::OutOfPlace(Kind::Open))
    );
}

#[test]
fn a_bad_name_is_told_apart_from_a_malformed_body() {
    // Open {0: "..", 1: 0, 2: false}
    let body = [0xa3, 0x00, 0x62, b'.', b'.', 0x01, 0x00, 0x02, 0xf4];
    let header = Header {
        kind: Kind::Open,
        fds: 0,
        body_bytes: 9,
        request: RequestId(1),
    };
    let why = NameError::NotPlain;
    assert_eq!(
        Request::decode(&header, &body),
        Err(FrameError::Name {
            kind: Kind::Open,
            why
        })
    );
}
