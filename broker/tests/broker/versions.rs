//! Every API in every advertised version is answered, in good cases and bad, with an
//! answer that the generic codec reads to its last byte. One table; a version that is
//! advertised and stands in no row fails the test.

mod groups;
mod records;
mod topics;

use crate::support::{Client, Server, batch};
use std::collections::{BTreeMap, BTreeSet};
use yuxi_protocol::{
    codec::Uuid,
    error_code::ErrorCode,
    message,
    messages::{self, ApiVersionsRequest, RequestResponsePair},
};

pub(crate) const TOPIC: &str = "there";

pub(crate) const MISSING: &str = "missing";

const GROUP: &str = "group";

/// A topic with records and a group with offsets, and what has been asked.
pub(crate) struct Table {
    server: Server,
    client: Client,
    topic_id: Uuid,
    advertised: BTreeMap<i16, (i16, i16)>,
    asked: BTreeSet<(i16, i16)>,
}

impl Table {
    async fn new() -> Self {
        let server = Server::start().await;
        let mut client = server.client().await;
        let topic_id = client.create_topic(TOPIC, 2, &[]).await;
        client.produce(TOPIC, batch(&["a", "b", "c"])).await;
        let listed = client
            .ask(
                3,
                &message!(ApiVersionsRequest {
                    client_software_name: "test".into(),
                    client_software_version: "1".into(),
                }),
            )
            .await;
        assert_eq!(listed.error_code, 0);
        let advertised = listed
            .api_keys
            .iter()
            .map(|api| (api.api_key, (api.min_version, api.max_version)))
            .collect();
        Self {
            server,
            client,
            topic_id,
            advertised,
            asked: BTreeSet::new(),
        }
    }

    /// Asks in every version; `check` sees each answer.
    pub(crate) async fn row<R: RequestResponsePair>(
        &mut self,
        request: impl Fn(i16) -> R,
        check: impl Fn(i16, R::Response),
    ) {
        let key = R::API_KEY.value();
        let (min, max) = self.advertised[&key];
        let known = R::SUPPORTED_VERSIONS;
        let (min, max) = (min.max(known.min().value()), max.min(known.max().value()));
        for version in min..=max {
            let answer = self.client.ask(version, &request(version)).await;
            self.asked.insert((key, version));
            check(version, answer);
        }
    }

    fn end(self) {
        let advertised = self
            .advertised
            .iter()
            .flat_map(|(&key, &(min, max))| (min..=max).map(move |version| (key, version)));
        // Produce 0 to 2 is advertised for old librdkafka and refused (KAFKA-18659).
        let missing: Vec<_> = advertised
            .filter(|asked| !self.asked.contains(asked) && !matches!(asked, (0, 0..=2)))
            .collect();
        assert_eq!(missing, [], "advertised and never asked");
        drop(self.server);
    }
}

pub(crate) fn code(error: ErrorCode) -> i16 {
    error.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_api_answers_in_every_version_it_advertises() {
    let mut table = Table::new().await;
    general(&mut table).await;
    records::records_in_and_out(&mut table).await;
    records::offsets(&mut table).await;
    groups::groups_before_there_are_any(&mut table).await;
    groups::groups(&mut table).await;
    topics::topics(&mut table).await;
    topics::configs(&mut table).await;
    crate::placement::check(&mut table).await;
    crate::isolation::check(&mut table, TOPIC).await;
    crate::consumer_groups::check(&mut table, TOPIC).await;
    crate::transactions::check(&mut table, TOPIC).await;
    table.end();
}

async fn general(table: &mut Table) {
    table
        .row(
            |version| {
                if version >= 3 {
                    message!(ApiVersionsRequest {
                        client_software_name: "test".into(),
                        client_software_version: "1".into(),
                    })
                } else {
                    ApiVersionsRequest::default()
                }
            },
            |_, answer| assert_eq!(answer.error_code, 0),
        )
        .await;
    table
        .row(
            |version| {
                if version >= 3 {
                    message!(ApiVersionsRequest {
                        client_software_name: "not a name!".into(),
                        client_software_version: "".into(),
                    })
                } else {
                    ApiVersionsRequest::default()
                }
            },
            |version, answer| {
                let expected = if version >= 3 {
                    code(ErrorCode::InvalidRequest)
                } else {
                    0
                };
                assert_eq!(answer.error_code, expected);
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::DescribeClusterRequest {
                    include_cluster_authorized_operations: version % 2 == 0,
                })
            },
            |_, answer| {
                assert_eq!(answer.error_code, 0);
                assert_eq!(answer.brokers.len(), 1);
                assert_eq!(answer.controller_id, 1);
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::DescribeClusterRequest {
                    endpoint_type: if version >= 1 { 2 } else { 1 },
                })
            },
            |version, answer| {
                assert_eq!(answer.error_code != 0, version >= 1);
            },
        )
        .await;
    table
        .row(
            |_| message!(messages::DescribeLogDirsRequest { topics: None }),
            |_, answer| {
                assert_eq!(answer.results.len(), 1);
                assert!(!answer.results[0].topics.is_empty());
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::InitProducerIdRequest {
                    transactional_id: None,
                    transaction_timeout_ms: 1000
                })
            },
            |_, answer| {
                assert_eq!(answer.error_code, 0);
                assert!(answer.producer_id >= 0);
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::InitProducerIdRequest {
                    transactional_id: Some("tx".into()),
                    transaction_timeout_ms: 1000,
                })
            },
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
}
