//! Heads and bodies of requests and answers, and the frames that are refused.

use bytes::{Buf, Bytes, BytesMut};
use yuxi_protocol::{
    codec::{ApiVersion, DecodeError, EncodeError, StrBytes},
    frame::{
        FrameError, Known, LENGTH_PREFIX, RequestHead, api_descriptor, decode_response,
        encode_response, encode_response_head, encode_response_into, frame_length, request_limits,
        response_correlation_id, response_head_version, response_limits,
    },
    messages::{
        API_DESCRIPTORS, ApiVersionsRequest, ApiVersionsResponse, KafkaRequest, KafkaResponse,
        MetadataRequest, MetadataResponse, OutboundFrameLimits, ProduceRequest, ProduceResponse,
        encode_request, measure_request,
    },
};

const LIMIT: usize = 1024 * 1024;

/// A request of kafka-wire's own making, without its length.
fn request<R: KafkaRequest>(request: &R, version: i16) -> Bytes {
    let mut buffer = BytesMut::new();
    encode_request(
        &mut buffer,
        0x0a0b_0c0d,
        Some(StrBytes::from("client")),
        request,
        ApiVersion::new(version),
        OutboundFrameLimits::new(LIMIT),
    )
    .unwrap();
    let length = frame_length(*buffer.first_chunk().unwrap(), LIMIT).unwrap();
    buffer.advance(LENGTH_PREFIX);
    assert_eq!(buffer.len(), length);
    buffer.freeze()
}

fn every_version<R: KafkaRequest>() -> std::ops::RangeInclusive<i16> {
    R::SUPPORTED_VERSIONS.min().value()..=R::SUPPORTED_VERSIONS.max().value()
}

#[test]
fn the_length_of_a_frame_is_bounded() {
    assert_eq!(frame_length(100_i32.to_be_bytes(), 100), Ok(100));
    assert_eq!(frame_length([0; 4], 100), Ok(0));
    for (prefix, refused) in [
        (-1, FrameError::NegativeLength(-1)),
        (i32::MIN, FrameError::NegativeLength(i32::MIN)),
        (
            101,
            FrameError::TooLarge {
                length: 101,
                limit: 100,
            },
        ),
        (
            i32::MAX,
            FrameError::TooLarge {
                length: 0x7fff_ffff,
                limit: 100,
            },
        ),
    ] {
        assert_eq!(frame_length(prefix.to_be_bytes(), 100), Err(refused));
    }
}

#[test]
fn a_request_is_split_into_head_and_body_at_every_version() {
    fn check<R: KafkaRequest + PartialEq + std::fmt::Debug>(expected: &R) {
        for version in every_version::<R>() {
            let (head, body) =
                RequestHead::decode(request(expected, version), request_limits(LIMIT)).unwrap();
            assert_eq!(head.api_key, R::API_KEY.value());
            assert_eq!(head.api_version, version);
            assert_eq!(head.correlation_id, 0x0a0b_0c0d);
            assert_eq!(head.client_id.as_deref(), Some("client"));
            assert_eq!(
                head.known(),
                Known::Yes(api_descriptor(head.api_key).unwrap())
            );
            let decoded: R = head.decode_body(body, request_limits(LIMIT)).unwrap();
            assert_eq!(decoded, *expected, "{} {version}", R::NAME);
        }
    }
    check(&ApiVersionsRequest::default());
    check(&MetadataRequest::default());
    check(&ProduceRequest::default());
}

#[test]
fn heads_stand_in_the_bytes_as_kafka_documents_them() {
    // Metadata 8 has a plain head, Metadata 9 one with (no) tagged fields.
    let plain = [0, 3, 0, 8, 0, 0, 0, 7, 0, 2, b'm', b'e', 0xaa];
    let flexible = [0, 3, 0, 9, 0, 0, 0, 7, 0, 2, b'm', b'e', 0, 0xaa];
    let anonymous = [0, 3, 0, 8, 0, 0, 0, 7, 0xff, 0xff, 0xaa];
    for (bytes, client_id) in [
        (&plain[..], Some("me")),
        (&flexible[..], Some("me")),
        (&anonymous[..], None),
    ] {
        let (head, body) =
            RequestHead::decode(Bytes::copy_from_slice(bytes), request_limits(LIMIT)).unwrap();
        assert_eq!(head.correlation_id, 7);
        assert_eq!(head.client_id.as_deref(), client_id);
        assert_eq!(body[..], [0xaa]);
    }
}

#[test]
fn a_request_that_is_not_known_can_still_be_answered() {
    let cases: &[(&str, &[u8], Option<&str>, bool)] = &[
        (
            "an unknown api",
            &[0x7f, 0xff, 0, 0, 0, 0, 0, 7, 0, 1, b'x', 1, 2],
            Some("x"),
            false,
        ),
        (
            "an api of a negative key",
            &[0xff, 0xff, 0, 0, 0, 0, 0, 7],
            None,
            false,
        ),
        (
            "ApiVersions 127 (flexible)",
            &[0, 18, 0, 127, 0, 0, 0, 7, 0, 1, b'x', 0, 9, 9],
            Some("x"),
            true,
        ),
        (
            "ApiVersions 127, nothing more",
            &[0, 18, 0, 127, 0, 0, 0, 7],
            None,
            true,
        ),
        (
            "ApiVersions 127, head in a shape yet to come",
            &[0, 18, 0, 127, 0, 0, 0, 7, 0x7f, 0xff, 1],
            None,
            true,
        ),
        (
            "ApiVersions -1",
            &[0, 18, 0xff, 0xff, 0, 0, 0, 7, 0, 1, b'x'],
            Some("x"),
            true,
        ),
        (
            "Produce 0 (refused, yet advertised)",
            &[0, 0, 0, 0, 0, 0, 0, 7, 0, 1, b'x', 0, 1],
            Some("x"),
            true,
        ),
    ];
    for (name, bytes, client_id, api_known) in cases {
        let (head, _) =
            RequestHead::decode(Bytes::copy_from_slice(bytes), request_limits(LIMIT)).unwrap();
        assert_eq!(head.correlation_id, 7, "{name}");
        assert_eq!(head.client_id.as_deref(), *client_id, "{name}");
        match head.known() {
            Known::OtherVersions(api) => {
                assert!(*api_known && api.api_key.value() == head.api_key, "{name}");
            }
            Known::No => assert!(!api_known, "{name}"),
            Known::Yes(_) => panic!("{name}"),
        }
    }
}

#[test]
fn a_malformed_head_of_a_known_request_is_refused() {
    for len in 0..8 {
        assert_eq!(
            RequestHead::decode(Bytes::from(vec![0; len]), request_limits(LIMIT)),
            Err(FrameError::NoHead(len))
        );
    }
    let cases: &[(&str, &[u8])] = &[
        ("no client id", &[0, 3, 0, 8, 0, 0, 0, 7]),
        (
            "client id of 7fff bytes",
            &[0, 3, 0, 8, 0, 0, 0, 7, 0x7f, 0xff, b'x'],
        ),
        (
            "client id of -2 bytes",
            &[0, 3, 0, 8, 0, 0, 0, 7, 0xff, 0xfe],
        ),
        (
            "client id that is no text",
            &[0, 3, 0, 8, 0, 0, 0, 7, 0, 1, 0xff],
        ),
        ("no tagged fields", &[0, 3, 0, 9, 0, 0, 0, 7, 0xff, 0xff]),
        (
            "7fffffff tagged fields",
            &[
                0, 3, 0, 9, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 7,
            ],
        ),
        (
            "a tagged field of 7fffffff bytes",
            &[
                0, 3, 0, 9, 0, 0, 0, 7, 0xff, 0xff, 1, 5, 0xff, 0xff, 0xff, 0xff, 7,
            ],
        ),
    ];
    for (name, bytes) in cases {
        let decoded = RequestHead::decode(Bytes::copy_from_slice(bytes), request_limits(LIMIT));
        assert!(
            matches!(decoded, Err(FrameError::Head(_))),
            "{name}: {decoded:?}"
        );
    }
}

#[test]
fn lengths_and_counts_of_7fffffff_are_refused_in_every_place_of_a_body() {
    // Wherever four bytes of a valid request are replaced by 7fffffff (or the compact
    // equivalent), decoding answers, with an error or with a value that fits the bytes.
    fn check<R: KafkaRequest>(valid: &R) {
        for version in every_version::<R>() {
            let frame = request(valid, version);
            let (head, body) = RequestHead::decode(frame, request_limits(LIMIT)).unwrap();
            for at in 0..body.len() {
                for evil in [&[0x7f, 0xff, 0xff, 0xff][..], &[0xff, 0xff, 0xff, 0xff, 7]] {
                    let mut bytes = body.to_vec();
                    bytes.splice(at.., evil.iter().copied());
                    let _ = head.decode_body::<R>(bytes.into(), request_limits(LIMIT));
                }
                let cut = head.decode_body::<R>(body.slice(..at), request_limits(LIMIT));
                assert!(
                    matches!(cut, Err(FrameError::Body { .. })),
                    "{} {version} {at}",
                    R::NAME
                );
            }
            // What follows a whole body is passed over, as by Kafka.
            let mut longer = body.to_vec();
            longer.extend([1, 2, 3]);
            let decoded = head.decode_body::<R>(longer.into(), request_limits(LIMIT));
            assert!(decoded.is_ok(), "{} {version}", R::NAME);
        }
    }
    check(&ApiVersionsRequest::default());
    check(&MetadataRequest::default());
    check(&ProduceRequest::default());

    // One topic array of 7fffffff elements, in the old and the compact spelling.
    for (version, body) in [
        (1, &[0x7f, 0xff, 0xff, 0xff][..]),
        (9, &[0xff, 0xff, 0xff, 0xff, 0x07][..]),
    ] {
        let head = RequestHead {
            api_key: 3,
            api_version: version,
            correlation_id: 1,
            client_id: None,
        };
        let decoded = head
            .decode_body::<MetadataRequest>(Bytes::copy_from_slice(body), request_limits(LIMIT));
        assert!(matches!(decoded, Err(FrameError::Body { .. })), "{version}");
    }
}

#[test]
fn a_request_may_not_outgrow_its_bounds() {
    let limits = request_limits(64);
    let frame = Bytes::from(vec![0; 65]);
    assert!(matches!(
        RequestHead::decode(frame, limits),
        Err(FrameError::Head(DecodeError::LimitExceeded { .. }))
    ));
    // Kafka's own bound on strings holds for compact ones too.
    let head = RequestHead {
        api_key: 3,
        api_version: 9,
        correlation_id: 1,
        client_id: None,
    };
    let longest = i16::MAX as usize;
    for (length, accepted) in [(longest, true), (longest + 1, false)] {
        // One topic, its name's length plus one as a varint, the name, no tagged fields;
        // then three booleans and no tagged fields.
        let mut body = vec![2, (length + 1) as u8 | 0x80, 0x80, 0x02];
        body.resize(body.len() + length, b'a');
        body.extend_from_slice(&[0, 0, 0, 0, 0]);
        let decoded = head.decode_body::<MetadataRequest>(body.into(), request_limits(LIMIT));
        match decoded {
            Ok(_) => assert!(accepted),
            Err(FrameError::Body {
                error: DecodeError::LimitExceeded { length: found, .. },
                ..
            }) => assert!(!accepted && found == length),
            Err(error) => panic!("{length}: {error}"),
        }
    }
}

#[test]
fn an_answer_is_read_as_it_was_written_at_every_version() {
    fn check<R>(response: &R)
    where
        R: KafkaResponse + PartialEq + std::fmt::Debug,
    {
        let versions = R::SUPPORTED_VERSIONS;
        for version in versions.min().value()..=versions.max().value() {
            let frame = encode_response(42, version, response).unwrap();
            let length = frame_length(*frame.first_chunk().unwrap(), LIMIT).unwrap();
            let frame = frame.slice(LENGTH_PREFIX..);
            assert_eq!(frame.len(), length);
            assert_eq!(response_correlation_id(&frame), Some(42));
            let decoded: R =
                decode_response(frame.clone(), 42, version, response_limits(LIMIT)).unwrap();
            assert_eq!(decoded, *response);
            assert_eq!(
                decode_response::<R>(frame.clone(), 43, version, response_limits(LIMIT)),
                Err(FrameError::WrongCorrelationId {
                    expected: 43,
                    found: 42
                })
            );
            for len in 0..frame.len() {
                assert!(
                    decode_response::<R>(frame.slice(..len), 42, version, response_limits(LIMIT))
                        .is_err()
                );
            }
        }
    }
    check(&ApiVersionsResponse::default());
    check(&MetadataResponse::default());
    check(&ProduceResponse::default());
}

#[test]
fn the_head_of_an_apiversions_answer_is_always_the_plain_one() {
    let mut response = ApiVersionsResponse::default();
    response.error_code = 35;
    assert_eq!(
        encode_response(7, 0, &response).unwrap()[..],
        [0, 0, 0, 10, 0, 0, 0, 7, 0, 35, 0, 0, 0, 0]
    );
    // From version 3 on the body is compact, the head still has no tagged fields.
    assert_eq!(
        encode_response(7, 3, &response).unwrap()[..],
        [0, 0, 0, 12, 0, 0, 0, 7, 0, 35, 1, 0, 0, 0, 0, 0]
    );
}

#[test]
fn heads_written_by_hand_are_those_of_kafka_wire() {
    for api in API_DESCRIPTORS {
        for version in api.supported_versions.min().value()..=api.supported_versions.max().value() {
            let flexible = api
                .flexible_versions
                .is_some_and(|range| range.contains(ApiVersion::new(version)));
            let expected = i16::from(flexible && api.api_key.value() != 18);
            assert_eq!(response_head_version(api, version), expected);
        }
        assert_eq!(api_descriptor(api.api_key.value()), Some(api));
    }
    assert_eq!(api_descriptor(-1), None);
    assert_eq!(api_descriptor(i16::MAX), None);
    let version = ApiVersion::new(9);
    let measured = measure_request(
        &MetadataRequest::default(),
        version,
        None,
        OutboundFrameLimits::new(LIMIT),
    )
    .unwrap();
    let api = api_descriptor(3).unwrap();
    assert_eq!(
        measured.response_header_version.value(),
        response_head_version(api, 9)
    );
    let mut head = BytesMut::new();
    encode_response_head(&mut head, 5, 0);
    encode_response_head(&mut head, 6, 1);
    assert_eq!(head[..], [0, 0, 0, 5, 0, 0, 0, 6, 0]);
}

#[test]
fn an_answer_that_cannot_be_encoded_leaves_nothing_behind() {
    let mut out = BytesMut::from(&b"earlier"[..]);
    let refused = encode_response_into(&mut out, 1, 99, &MetadataResponse::default());
    assert!(matches!(
        refused,
        Err(EncodeError::UnsupportedVersion { .. })
    ));
    assert_eq!(out[..], *b"earlier");
}
