//! Client of the Envoy rate limit protocol, `envoy.service.ratelimit.v3`.
//!
//! This module translates bucket requests into calls of `ShouldRateLimit`. Its messages contain
//! only the fields that are used, with their published numbers. Each request carries its limit
//! as an override, so that the service needs to know only the domain. The module does not
//! retry, and it does not decide when to reconnect.

use std::{sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use tonic::{
    Request, Status, TimeoutExpired,
    client::Grpc,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    policy::{sections::rate_limit::spec::QuotaSpec, snapshot::RateLimitServiceSpec},
    state::policies::{
        rate_limit::{RateLimitGrant, RateLimited},
        remote_limits::{
            BucketRequest, BucketResults, EngineFault, EngineResponse, RateLimitEngine,
        },
    },
};

const SHOULD_RATE_LIMIT: PathAndQuery =
    PathAndQuery::from_static("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");

#[derive(Clone, PartialEq, prost::Message)]
struct RateLimitRequest {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<RateLimitDescriptor>,
    #[prost(uint32, tag = "3")]
    hits_addend: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RateLimitDescriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<DescriptorEntry>,
    #[prost(message, optional, tag = "2")]
    limit: Option<RateLimitOverride>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescriptorEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RateLimitOverride {
    #[prost(uint32, tag = "1")]
    requests_per_unit: u32,
    #[prost(enumeration = "RateLimitUnit", tag = "2")]
    unit: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum RateLimitUnit {
    Unknown = 0,
    Second = 1,
    Minute = 2,
    Hour = 3,
    Day = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RateLimitResponse {
    #[prost(enumeration = "RateLimitCode", tag = "1")]
    overall_code: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<DescriptorStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum RateLimitCode {
    Unknown = 0,
    Ok = 1,
    OverLimit = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescriptorStatus {
    #[prost(enumeration = "RateLimitCode", tag = "1")]
    code: i32,
    #[prost(uint32, tag = "3")]
    limit_remaining: u32,
    #[prost(message, optional, tag = "4")]
    duration_until_reset: Option<ProtoDuration>,
}

/// The well-known message `google.protobuf.Duration`.
#[derive(Clone, PartialEq, prost::Message)]
struct ProtoDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Connection to a rate limit service. The loss of the connection becomes visible with the next
/// request.
#[derive(Debug, Clone)]
pub(super) struct RateLimitServiceEngine {
    channel: Channel,
    domain: Arc<str>,
}

impl RateLimitServiceEngine {
    pub(super) async fn open(
        spec: &RateLimitServiceSpec,
        timeout: Duration,
    ) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(spec.url.to_string())
            .map_err(|error| format!("it cannot be reached like this, correct `url`: {error}"))?;
        let mut endpoint = endpoint
            .connect_timeout(timeout)
            .http2_keep_alive_interval(timeout)
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true)
            .timeout(timeout);
        if spec.url.starts_with("https:") {
            endpoint = endpoint
                .tls_config(ClientTlsConfig::new().with_native_roots())
                .map_err(|error| describe_root_cause(&error))?;
        }
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| describe_root_cause(&error))?;
        Ok(Self {
            channel,
            domain: spec.domain.clone(),
        })
    }
}

/// Returns the message of the innermost cause, which is the most specific one.
fn describe_root_cause(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), describe_root_cause)
}

/// Classifies a failed call. The connection counts as lost if the transport failed, but not for
/// a status of the service or a timeout.
fn to_engine_fault(status: &Status) -> EngineFault {
    let is_lost =
        std::error::Error::source(status).is_some_and(|source| !source.is::<TimeoutExpired>());
    EngineFault {
        reason: status.to_string(),
        is_connection_lost: is_lost,
    }
}

impl RateLimitEngine for RateLimitServiceEngine {
    fn send_requests(&self, quota_requests: Vec<BucketRequest>) -> EngineResponse {
        let (mut grpc, domain) = (Grpc::new(self.channel.clone()), self.domain.to_string());
        Box::pin(async move {
            let mut verdicts = BucketResults::with_capacity(quota_requests.len());
            // Each rule is a separate call. Within one call all descriptors share one cost, and
            // a rejecting descriptor does not keep the following ones from being charged.
            for ask in quota_requests {
                grpc.ready().await.map_err(|error| EngineFault {
                    reason: describe_root_cause(&error),
                    is_connection_lost: true,
                })?;
                let call = grpc.unary(
                    Request::new(build_request(domain.clone(), &ask)),
                    SHOULD_RATE_LIMIT,
                    ProstCodec::default(),
                );
                let response: tonic::Response<RateLimitResponse> =
                    call.await.map_err(|status| to_engine_fault(&status))?;
                let verdict = parse_response(response.get_ref(), ask.quota).map_err(|reason| {
                    EngineFault {
                        reason,
                        is_connection_lost: false,
                    }
                })?;
                let is_last = verdict.is_err() && ask.is_enforced && ask.max_wait.is_some();
                verdicts.push(verdict);
                if is_last {
                    break;
                }
            }
            Ok(verdicts)
        })
    }
}

fn build_request(domain: String, ask: &BucketRequest) -> RateLimitRequest {
    let mut entries = vec![DescriptorEntry {
        key: "rule".to_owned(),
        value: ask.rule.to_string(),
    }];
    entries.extend(ask.key.clone().map(|value| DescriptorEntry {
        key: "key".to_owned(),
        value,
    }));
    let unit = match ask.quota.unit_seconds.get() {
        1 => RateLimitUnit::Second,
        60 => RateLimitUnit::Minute,
        3_600 => RateLimitUnit::Hour,
        _ => RateLimitUnit::Day,
    };
    let limit = Some(RateLimitOverride {
        requests_per_unit: ask.quota.requests.get(),
        unit: unit.into(),
    });
    RateLimitRequest {
        domain,
        descriptors: vec![RateLimitDescriptor { entries, limit }],
        hits_addend: u32::try_from(ask.tokens).unwrap_or(u32::MAX),
    }
}

/// Converts a response into a grant or a rejection.
///
/// # Errors
/// If the overall code is neither `OK` nor `OVER_LIMIT`.
fn parse_response(
    response: &RateLimitResponse,
    quota: QuotaSpec,
) -> Result<Result<RateLimitGrant, RateLimited>, String> {
    let status = response.statuses.first();
    let reset = status.and_then(|status| status.duration_until_reset.as_ref());
    let reset = reset.map(|reset| {
        Duration::new(
            reset.seconds.try_into().unwrap_or_default(),
            reset.nanos.try_into().unwrap_or_default(),
        )
    });
    let reset = reset.unwrap_or(Duration::from_secs(quota.unit_seconds.get()));
    match response.overall_code() {
        // A service that does not apply the limit returns no status. The full burst then counts
        // as remaining.
        RateLimitCode::Ok => Ok(Ok(RateLimitGrant {
            wait: Duration::ZERO,
            remaining: status.map_or_else(|| quota.burst.get(), |status| status.limit_remaining),
            reset_after: reset,
        })),
        RateLimitCode::OverLimit => Ok(Err(RateLimited { retry_after: reset })),
        RateLimitCode::Unknown => Err("the rate limit service knows neither yes nor no".to_owned()),
    }
}
