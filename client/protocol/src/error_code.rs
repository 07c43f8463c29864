//! Kafka's error codes, the one thing that every answer to a client can carry.
//!
//! One table: number, Kafka's own name, whether a client may try again, and one line
//! that says what is meant. Names, numbers and retriability are Kafka's, up to 4.2.

use std::fmt;

macro_rules! error_codes {
    ($($code:literal $variant:ident $name:literal $retry:ident $message:literal;)*) => {
        /// An error code of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i16)]
        pub enum ErrorCode {
            $(
                #[doc = concat!("`", $name, "`: ", $message, ".")]
                $variant = $code,
            )*
        }

        impl ErrorCode {
            /// Every code, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code with this number; a number that is not known here is `None`.
            pub const fn from_code(code: i16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The name by which Kafka's documentation calls it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What it means, in one line.
            pub const fn message(self) -> &'static str {
                match self {
                    $(Self::$variant => $message,)*
                }
            }

            /// Whether the same request may succeed when it is sent again, perhaps to
            /// another broker.
            pub const fn is_retriable(self) -> bool {
                match self {
                    $(Self::$variant => error_codes!(@retry $retry),)*
                }
            }
        }
    };
    (@retry retriable) => { true };
    (@retry fatal) => { false };
}

error_codes! {
    -1 UnknownServerError "UNKNOWN_SERVER_ERROR" fatal "the broker met an unexpected error";
    0 None "NONE" fatal "no error";
    1 OffsetOutOfRange "OFFSET_OUT_OF_RANGE" fatal "the offset is outside the range that the partition holds";
    2 CorruptMessage "CORRUPT_MESSAGE" retriable "the record batch fails its checksum or is otherwise corrupt";
    3 UnknownTopicOrPartition "UNKNOWN_TOPIC_OR_PARTITION" retriable "the broker does not host this topic or partition";
    4 InvalidFetchSize "INVALID_FETCH_SIZE" fatal "the fetch size is invalid";
    5 LeaderNotAvailable "LEADER_NOT_AVAILABLE" retriable "the partition has no leader at the moment";
    6 NotLeaderOrFollower "NOT_LEADER_OR_FOLLOWER" retriable "the broker is not the leader, or not a replica, of the partition";
    7 RequestTimedOut "REQUEST_TIMED_OUT" retriable "the request timed out";
    8 BrokerNotAvailable "BROKER_NOT_AVAILABLE" fatal "the broker is not available";
    9 ReplicaNotAvailable "REPLICA_NOT_AVAILABLE" retriable "the replica is not available";
    10 MessageTooLarge "MESSAGE_TOO_LARGE" fatal "the record batch is larger than the topic accepts";
    11 StaleControllerEpoch "STALE_CONTROLLER_EPOCH" fatal "the controller has moved to another broker";
    12 OffsetMetadataTooLarge "OFFSET_METADATA_TOO_LARGE" fatal "the metadata of the committed offset is too large";
    13 NetworkException "NETWORK_EXCEPTION" retriable "the connection ended before the answer came";
    14 CoordinatorLoadInProgress "COORDINATOR_LOAD_IN_PROGRESS" retriable "the coordinator is still loading its state";
    15 CoordinatorNotAvailable "COORDINATOR_NOT_AVAILABLE" retriable "the coordinator is not available";
    16 NotCoordinator "NOT_COORDINATOR" retriable "the broker is not the coordinator";
    17 InvalidTopic "INVALID_TOPIC_EXCEPTION" fatal "the topic's name is illegal, or the operation is not allowed on it";
    18 RecordListTooLarge "RECORD_LIST_TOO_LARGE" fatal "the record batch is larger than a log segment";
    19 NotEnoughReplicas "NOT_ENOUGH_REPLICAS" retriable "fewer replicas are in sync than min.insync.replicas asks for";
    20 NotEnoughReplicasAfterAppend "NOT_ENOUGH_REPLICAS_AFTER_APPEND" retriable "the records were written, but to fewer replicas than min.insync.replicas asks for";
    21 InvalidRequiredAcks "INVALID_REQUIRED_ACKS" fatal "acks must be 0, 1 or -1 (all)";
    22 IllegalGeneration "ILLEGAL_GENERATION" fatal "the group is in another generation";
    23 InconsistentGroupProtocol "INCONSISTENT_GROUP_PROTOCOL" fatal "the member's protocols do not go with those of the group";
    24 InvalidGroupId "INVALID_GROUP_ID" fatal "the group id is invalid";
    25 UnknownMemberId "UNKNOWN_MEMBER_ID" fatal "the group does not know this member";
    26 InvalidSessionTimeout "INVALID_SESSION_TIMEOUT" fatal "the session timeout is outside the range that the broker allows";
    27 RebalanceInProgress "REBALANCE_IN_PROGRESS" fatal "the group is rebalancing: rejoin";
    28 InvalidCommitOffsetSize "INVALID_COMMIT_OFFSET_SIZE" fatal "the committed offsets are too large to be stored";
    29 TopicAuthorizationFailed "TOPIC_AUTHORIZATION_FAILED" fatal "not authorized for this topic";
    30 GroupAuthorizationFailed "GROUP_AUTHORIZATION_FAILED" fatal "not authorized for this group";
    31 ClusterAuthorizationFailed "CLUSTER_AUTHORIZATION_FAILED" fatal "not authorized for this cluster";
    32 InvalidTimestamp "INVALID_TIMESTAMP" fatal "a record's timestamp is outside the range that the topic accepts";
    33 UnsupportedSaslMechanism "UNSUPPORTED_SASL_MECHANISM" fatal "the SASL mechanism is not enabled";
    34 IllegalSaslState "ILLEGAL_SASL_STATE" fatal "the request does not fit the state of the authentication";
    35 UnsupportedVersion "UNSUPPORTED_VERSION" fatal "this version of the API is not supported";
    36 TopicAlreadyExists "TOPIC_ALREADY_EXISTS" fatal "a topic with this name exists already";
    37 InvalidPartitions "INVALID_PARTITIONS" fatal "the number of partitions is invalid";
    38 InvalidReplicationFactor "INVALID_REPLICATION_FACTOR" fatal "the replication factor is below 1 or above the number of brokers";
    39 InvalidReplicaAssignment "INVALID_REPLICA_ASSIGNMENT" fatal "the replica assignment is invalid";
    40 InvalidConfig "INVALID_CONFIG" fatal "a setting is unknown or its value invalid";
    41 NotController "NOT_CONTROLLER" retriable "this broker is not the controller";
    42 InvalidRequest "INVALID_REQUEST" fatal "the request is malformed or contradicts itself";
    43 UnsupportedForMessageFormat "UNSUPPORTED_FOR_MESSAGE_FORMAT" fatal "the message format does not support the request";
    44 PolicyViolation "POLICY_VIOLATION" fatal "the request violates a policy";
    45 OutOfOrderSequenceNumber "OUT_OF_ORDER_SEQUENCE_NUMBER" fatal "a sequence number does not follow the producer's last one";
    46 DuplicateSequenceNumber "DUPLICATE_SEQUENCE_NUMBER" fatal "the sequence number was written before";
    47 InvalidProducerEpoch "INVALID_PRODUCER_EPOCH" fatal "the producer's epoch is old";
    48 InvalidTxnState "INVALID_TXN_STATE" fatal "the transaction is in a state that does not allow this";
    49 InvalidProducerIdMapping "INVALID_PRODUCER_ID_MAPPING" fatal "the producer id does not belong to this transactional id";
    50 InvalidTransactionTimeout "INVALID_TRANSACTION_TIMEOUT" fatal "the transaction timeout is above transaction.max.timeout.ms";
    51 ConcurrentTransactions "CONCURRENT_TRANSACTIONS" retriable "another operation on this transaction is still going on";
    52 TransactionCoordinatorFenced "TRANSACTION_COORDINATOR_FENCED" fatal "another broker has become the transaction's coordinator";
    53 TransactionalIdAuthorizationFailed "TRANSACTIONAL_ID_AUTHORIZATION_FAILED" fatal "not authorized for this transactional id";
    54 SecurityDisabled "SECURITY_DISABLED" fatal "security is not enabled";
    55 OperationNotAttempted "OPERATION_NOT_ATTEMPTED" fatal "not attempted, because another operation of the request failed";
    56 KafkaStorageError "KAFKA_STORAGE_ERROR" retriable "the disk failed or is full";
    57 LogDirNotFound "LOG_DIR_NOT_FOUND" fatal "the broker has no such log directory";
    58 SaslAuthenticationFailed "SASL_AUTHENTICATION_FAILED" fatal "authentication failed";
    59 UnknownProducerId "UNKNOWN_PRODUCER_ID" fatal "the partition knows nothing of this producer id";
    60 ReassignmentInProgress "REASSIGNMENT_IN_PROGRESS" fatal "a reassignment of the partition is going on";
    61 DelegationTokenAuthDisabled "DELEGATION_TOKEN_AUTH_DISABLED" fatal "delegation tokens are not enabled";
    62 DelegationTokenNotFound "DELEGATION_TOKEN_NOT_FOUND" fatal "there is no such delegation token";
    63 DelegationTokenOwnerMismatch "DELEGATION_TOKEN_OWNER_MISMATCH" fatal "the delegation token belongs to another principal";
    64 DelegationTokenRequestNotAllowed "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED" fatal "delegation tokens are not given out on this connection";
    65 DelegationTokenAuthorizationFailed "DELEGATION_TOKEN_AUTHORIZATION_FAILED" fatal "not authorized for this delegation token";
    66 DelegationTokenExpired "DELEGATION_TOKEN_EXPIRED" fatal "the delegation token has expired";
    67 InvalidPrincipalType "INVALID_PRINCIPAL_TYPE" fatal "the type of principal is not supported";
    68 NonEmptyGroup "NON_EMPTY_GROUP" fatal "the group has members";
    69 GroupIdNotFound "GROUP_ID_NOT_FOUND" fatal "there is no such group";
    70 FetchSessionIdNotFound "FETCH_SESSION_ID_NOT_FOUND" retriable "there is no such fetch session";
    71 InvalidFetchSessionEpoch "INVALID_FETCH_SESSION_EPOCH" retriable "the fetch session is at another epoch";
    72 ListenerNotFound "LISTENER_NOT_FOUND" retriable "the leader has no listener like the one that was asked";
    73 TopicDeletionDisabled "TOPIC_DELETION_DISABLED" fatal "deleting topics is disabled";
    74 FencedLeaderEpoch "FENCED_LEADER_EPOCH" retriable "the leader epoch is older than the broker's";
    75 UnknownLeaderEpoch "UNKNOWN_LEADER_EPOCH" retriable "the leader epoch is newer than the broker's";
    76 UnsupportedCompressionType "UNSUPPORTED_COMPRESSION_TYPE" fatal "this version of the API does not know the compression type";
    77 StaleBrokerEpoch "STALE_BROKER_EPOCH" fatal "the broker has been registered anew";
    78 OffsetNotAvailable "OFFSET_NOT_AVAILABLE" retriable "the new leader does not know its high watermark yet";
    79 MemberIdRequired "MEMBER_ID_REQUIRED" fatal "join again with the member id of this answer";
    80 PreferredLeaderNotAvailable "PREFERRED_LEADER_NOT_AVAILABLE" retriable "the preferred leader is not available";
    81 GroupMaxSizeReached "GROUP_MAX_SIZE_REACHED" fatal "the group has as many members as the broker allows";
    82 FencedInstanceId "FENCED_INSTANCE_ID" fatal "another member has taken over this group.instance.id";
    83 EligibleLeadersNotAvailable "ELIGIBLE_LEADERS_NOT_AVAILABLE" retriable "no replica may become the leader";
    84 ElectionNotNeeded "ELECTION_NOT_NEEDED" retriable "the partition needs no election";
    85 NoReassignmentInProgress "NO_REASSIGNMENT_IN_PROGRESS" fatal "no reassignment of the partition is going on";
    86 GroupSubscribedToTopic "GROUP_SUBSCRIBED_TO_TOPIC" fatal "the group is subscribed to the topic";
    87 InvalidRecord "INVALID_RECORD" fatal "a record is invalid";
    88 UnstableOffsetCommit "UNSTABLE_OFFSET_COMMIT" retriable "a transaction that commits offsets is still open";
    89 ThrottlingQuotaExceeded "THROTTLING_QUOTA_EXCEEDED" retriable "the quota is used up";
    90 ProducerFenced "PRODUCER_FENCED" fatal "a newer producer uses the same transactional id";
    91 ResourceNotFound "RESOURCE_NOT_FOUND" fatal "there is no such resource";
    92 DuplicateResource "DUPLICATE_RESOURCE" fatal "the request names a resource twice";
    93 UnacceptableCredential "UNACCEPTABLE_CREDENTIAL" fatal "the credential is not acceptable";
    94 InconsistentVoterSet "INCONSISTENT_VOTER_SET" fatal "the voters' sets differ";
    95 InvalidUpdateVersion "INVALID_UPDATE_VERSION" fatal "the version to update to is invalid";
    96 FeatureUpdateFailed "FEATURE_UPDATE_FAILED" fatal "the features could not be updated";
    97 PrincipalDeserializationFailure "PRINCIPAL_DESERIALIZATION_FAILURE" fatal "the forwarded principal is unreadable";
    98 SnapshotNotFound "SNAPSHOT_NOT_FOUND" fatal "there is no such snapshot";
    99 PositionOutOfRange "POSITION_OUT_OF_RANGE" fatal "the position is outside the snapshot";
    100 UnknownTopicId "UNKNOWN_TOPIC_ID" retriable "the broker does not host this topic id";
    101 DuplicateBrokerRegistration "DUPLICATE_BROKER_REGISTRATION" fatal "this broker id is in use";
    102 BrokerIdNotRegistered "BROKER_ID_NOT_REGISTERED" fatal "this broker id is not registered";
    103 InconsistentTopicId "INCONSISTENT_TOPIC_ID" retriable "the partition belongs to another topic id";
    104 InconsistentClusterId "INCONSISTENT_CLUSTER_ID" fatal "the request is meant for another cluster";
    105 TransactionalIdNotFound "TRANSACTIONAL_ID_NOT_FOUND" fatal "there is no such transactional id";
    106 FetchSessionTopicIdError "FETCH_SESSION_TOPIC_ID_ERROR" retriable "the fetch session mixes topic names and topic ids";
    107 IneligibleReplica "INELIGIBLE_REPLICA" fatal "a member of the proposed ISR may not join it";
    108 NewLeaderElected "NEW_LEADER_ELECTED" fatal "the change was made, and the partition has another leader";
    109 OffsetMovedToTieredStorage "OFFSET_MOVED_TO_TIERED_STORAGE" fatal "the offset has moved to tiered storage";
    110 FencedMemberEpoch "FENCED_MEMBER_EPOCH" fatal "the member's epoch is fenced: give up all partitions and rejoin";
    111 UnreleasedInstanceId "UNRELEASED_INSTANCE_ID" fatal "another member still holds this group.instance.id";
    112 UnsupportedAssignor "UNSUPPORTED_ASSIGNOR" fatal "the group does not support the assignor";
    113 StaleMemberEpoch "STALE_MEMBER_EPOCH" fatal "the member's epoch is stale: retry with the new one";
    114 MismatchedEndpointType "MISMATCHED_ENDPOINT_TYPE" fatal "the request went to the wrong type of endpoint";
    115 UnsupportedEndpointType "UNSUPPORTED_ENDPOINT_TYPE" fatal "this type of endpoint is not supported";
    116 UnknownControllerId "UNKNOWN_CONTROLLER_ID" fatal "there is no such controller";
    117 UnknownSubscriptionId "UNKNOWN_SUBSCRIPTION_ID" fatal "the telemetry subscription is unknown or out of date";
    118 TelemetryTooLarge "TELEMETRY_TOO_LARGE" fatal "the telemetry is larger than the broker accepts";
    119 InvalidRegistration "INVALID_REGISTRATION" fatal "the controller refuses the broker's registration";
    120 TransactionAbortable "TRANSACTION_ABORTABLE" fatal "the transaction met an error and can be aborted";
    121 InvalidRecordState "INVALID_RECORD_STATE" fatal "the record is in a state that does not allow this";
    122 ShareSessionNotFound "SHARE_SESSION_NOT_FOUND" retriable "there is no such share session";
    123 InvalidShareSessionEpoch "INVALID_SHARE_SESSION_EPOCH" retriable "the share session is at another epoch";
    124 FencedStateEpoch "FENCED_STATE_EPOCH" fatal "the share group's state is at another epoch";
    125 InvalidVoterKey "INVALID_VOTER_KEY" fatal "the voter's key is not the receiver's";
    126 DuplicateVoter "DUPLICATE_VOTER" fatal "the voter is in the set already";
    127 VoterNotFound "VOTER_NOT_FOUND" fatal "the voter is not in the set";
    128 InvalidRegularExpression "INVALID_REGULAR_EXPRESSION" fatal "the regular expression is invalid";
}

impl ErrorCode {
    /// The number that stands on the wire.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// Whether this is [`ErrorCode::None`].
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::None)
    }
}

/// No error.
impl Default for ErrorCode {
    fn default() -> Self {
        Self::None
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.message())
    }
}

impl From<ErrorCode> for i16 {
    fn from(error: ErrorCode) -> Self {
        error.code()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_from_unknown_to_the_last_has_one_code() {
        let numbers: Vec<i16> = ErrorCode::ALL.iter().map(|error| error.code()).collect();
        assert_eq!(numbers, (-1..=128).collect::<Vec<_>>());
        for &error in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_code(error.code()), Some(error));
        }
        assert_eq!(ErrorCode::from_code(-2), None);
        assert_eq!(ErrorCode::from_code(129), None);
        assert_eq!(ErrorCode::from_code(i16::MAX), None);
    }

    #[test]
    fn what_clients_branch_on_has_kafkas_numbers() {
        for (number, error, retriable) in [
            (2, ErrorCode::CorruptMessage, true),
            (3, ErrorCode::UnknownTopicOrPartition, true),
            (6, ErrorCode::NotLeaderOrFollower, true),
            (10, ErrorCode::MessageTooLarge, false),
            (16, ErrorCode::NotCoordinator, true),
            (25, ErrorCode::UnknownMemberId, false),
            (27, ErrorCode::RebalanceInProgress, false),
            (35, ErrorCode::UnsupportedVersion, false),
            (45, ErrorCode::OutOfOrderSequenceNumber, false),
            (47, ErrorCode::InvalidProducerEpoch, false),
            (56, ErrorCode::KafkaStorageError, true),
            (79, ErrorCode::MemberIdRequired, false),
            (87, ErrorCode::InvalidRecord, false),
            (100, ErrorCode::UnknownTopicId, true),
        ] {
            assert_eq!(error.code(), number, "{error}");
            assert_eq!(error.is_retriable(), retriable, "{error}");
        }
        assert!(ErrorCode::default().is_ok());
    }
}
