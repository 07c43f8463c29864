//! The least that a producer can talk to: requests are decoded and batches kept in memory,
//! with no checks and no log. It is the yardstick of `scripts/bench produce`: what a real
//! broker takes longer than this one is what its log and its checks cost.
//!
//! Prints `listening on HOST:PORT` like the daemon. Any topic has one partition.

use bytes::{Buf, Bytes, BytesMut};
use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use yuxi_protocol::{
    codec::{StrBytes, Uuid},
    frame::{self, RequestHead},
    message,
    messages::{
        ApiVersionsResponse, KafkaRequest, MetadataRequest, MetadataResponse, ProduceRequest,
        ProduceResponse,
        api_versions_response::ApiVersion,
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
        produce_response::{PartitionProduceResponse, TopicProduceResponse},
    },
    record::BatchHeader,
};

const MAX_FRAME_BYTES: usize = 100 << 20;
const READ_BYTES: usize = 64 * 1024;
const API_VERSIONS: i16 = 18;

#[derive(Default)]
struct Memory {
    batches: Vec<Bytes>,
    end_offset: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    writeln!(std::io::stdout(), "listening on {address}")?;
    let memory = Arc::new(Mutex::new(Memory::default()));
    loop {
        let (stream, _) = listener.accept().await?;
        let memory = Arc::clone(&memory);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, address, &memory).await {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

async fn serve(
    mut stream: TcpStream,
    address: SocketAddr,
    memory: &Mutex<Memory>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::new();
    loop {
        while let Some(prefix) = buffer.first_chunk::<4>() {
            let length = frame::frame_length(*prefix, MAX_FRAME_BYTES)?;
            if buffer.len() < 4 + length {
                buffer.reserve(4 + length - buffer.len());
                break;
            }
            buffer.advance(4);
            let frame = buffer.split_to(length).freeze();
            if let Some(answer) = answer(frame, address, memory)? {
                stream.write_all(&answer).await?;
            }
        }
        buffer.reserve(READ_BYTES);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

fn answer(
    frame: Bytes,
    address: SocketAddr,
    memory: &Mutex<Memory>,
) -> anyhow::Result<Option<Bytes>> {
    let limits = frame::request_limits(MAX_FRAME_BYTES);
    let (head, body) = RequestHead::decode(frame, limits)?;
    let (id, version) = (head.correlation_id, head.api_version);
    if head.api_key == API_VERSIONS {
        return Ok(Some(frame::encode_response(
            id,
            version.min(3),
            &versions(),
        )?));
    }
    if head.api_key == MetadataRequest::API_KEY.value() {
        let asked: MetadataRequest = head.decode_body(body, limits)?;
        return Ok(Some(frame::encode_response(
            id,
            version,
            &metadata(&asked, address),
        )?));
    }
    let produce: ProduceRequest = head.decode_body(body, limits)?;
    let acks = produce.acks;
    let response = keep(produce, &mut memory.lock().expect("nobody panics with it"))?;
    Ok(if acks == 0 {
        None
    } else {
        Some(frame::encode_response(id, version, &response)?)
    })
}

/// What librdkafka 2.0 needs to produce with the newest batches.
fn versions() -> ApiVersionsResponse {
    let api = |api_key, min_version, max_version| {
        message!(ApiVersion {
            api_key,
            min_version,
            max_version
        })
    };
    message!(ApiVersionsResponse {
        api_keys: vec![
            api(0, 0, 9),
            api(1, 4, 11),
            api(3, 0, 8),
            api(API_VERSIONS, 0, 3)
        ],
    })
}

fn metadata(asked: &MetadataRequest, address: SocketAddr) -> MetadataResponse {
    let names = asked
        .topics
        .iter()
        .flatten()
        .filter_map(|topic| topic.name.clone());
    message!(MetadataResponse {
        brokers: vec![message!(MetadataResponseBroker {
            node_id: 1,
            host: StrBytes::from(address.ip().to_string()),
            port: i32::from(address.port()),
        })],
        controller_id: 1,
        topics: names
            .map(|name| {
                message!(MetadataResponseTopic {
                    name: Some(name),
                    topic_id: Uuid::ZERO,
                    partitions: vec![message!(MetadataResponsePartition {
                        leader_id: 1,
                        replica_nodes: vec![1],
                        isr_nodes: vec![1],
                    })],
                })
            })
            .collect(),
    })
}

fn keep(produce: ProduceRequest, memory: &mut Memory) -> anyhow::Result<ProduceResponse> {
    let mut responses = Vec::new();
    for topic in produce.topic_data {
        let mut partitions = Vec::new();
        for data in topic.partition_data {
            let records = data.records.unwrap_or_default();
            let count = BatchHeader::parse(&records)?.record_count;
            partitions.push(message!(PartitionProduceResponse {
                index: data.index,
                base_offset: memory.end_offset,
            }));
            memory.end_offset += i64::from(count);
            memory.batches.push(records);
        }
        responses.push(message!(TopicProduceResponse {
            name: topic.name,
            partition_responses: partitions,
        }));
    }
    Ok(message!(ProduceResponse { responses }))
}
