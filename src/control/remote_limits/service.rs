//! Asking a server of Envoy's rate limit protocol, `envoy.service.ratelimit.v3`.
//!
//! The messages are those fields of the published ones that are used here, with their numbers. A limit travels with each request, as an
//! override, so that the server needs to know the domain and nothing else.

use std::{sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use tonic::{
    Request, Status, TimeoutExpired,
    client::Grpc,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_prost::ProstCodec;

use super::PATIENCE;
use crate::{
    policy::snapshot::{QuotaSpec, ServiceSpec},
    state::{
        rate_limit::{Granted, Limited},
        remote_limits::{Answer, Ask, EngineFault, RateLimitEngine, Verdicts},
    },
};

const METHOD: PathAndQuery =
    PathAndQuery::from_static("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");

#[derive(Clone, PartialEq, prost::Message)]
struct RateLimitRequest {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
    #[prost(uint32, tag = "3")]
    hits_addend: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
    #[prost(message, optional, tag = "2")]
    limit: Option<Limit>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Limit {
    #[prost(uint32, tag = "1")]
    requests_per_unit: u32,
    #[prost(enumeration = "Unit", tag = "2")]
    unit: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Unit {
    Unknown = 0,
    Second = 1,
    Minute = 2,
    Hour = 3,
    Day = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RateLimitResponse {
    #[prost(enumeration = "Code", tag = "1")]
    overall_code: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<DescriptorStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Code {
    Unknown = 0,
    Ok = 1,
    OverLimit = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescriptorStatus {
    #[prost(enumeration = "Code", tag = "1")]
    code: i32,
    #[prost(uint32, tag = "3")]
    limit_remaining: u32,
    #[prost(message, optional, tag = "4")]
    duration_until_reset: Option<Span>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// A connection. That it is gone is noticed by whoever asks on it next.
#[derive(Debug, Clone)]
pub(super) struct Service {
    channel: Channel,
    domain: Arc<str>,
}

impl Service {
    pub(super) async fn open(spec: &ServiceSpec) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(spec.url.to_string())
            .map_err(|error| format!("it cannot be reached so, mend `url`: {error}"))?;
        let mut endpoint = endpoint
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(PATIENCE)
            .keep_alive_timeout(PATIENCE)
            .keep_alive_while_idle(true)
            .timeout(PATIENCE);
        if spec.url.starts_with("https:") {
            endpoint = endpoint
                .tls_config(ClientTlsConfig::new().with_native_roots())
                .map_err(|error| in_full(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| in_full(&error))?;
        Ok(Self {
            channel,
            domain: spec.domain.clone(),
        })
    }
}

/// An error with what caused it, which is what helps.
fn in_full(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), in_full)
}

/// The connection is lost if a call failed on its way, and not by what the service said, or because it said nothing in time.
fn fault(status: &Status) -> EngineFault {
    let is_lost =
        std::error::Error::source(status).is_some_and(|source| !source.is::<TimeoutExpired>());
    EngineFault {
        why: status.to_string(),
        is_lost,
    }
}

impl RateLimitEngine for Service {
    fn ask(&self, asks: Vec<Ask>) -> Answer {
        let (mut grpc, domain) = (Grpc::new(self.channel.clone()), self.domain.to_string());
        Box::pin(async move {
            let mut verdicts = Verdicts::with_capacity(asks.len());
            // One call per rule: within one, all descriptors are charged the same, and those behind one that refuses would be charged too.
            for ask in asks {
                grpc.ready().await.map_err(|error| EngineFault {
                    why: in_full(&error),
                    is_lost: true,
                })?;
                let asked = grpc.unary(
                    Request::new(request(domain.clone(), &ask)),
                    METHOD,
                    ProstCodec::default(),
                );
                let answer: tonic::Response<RateLimitResponse> =
                    asked.await.map_err(|status| fault(&status))?;
                let verdict = verdict(answer.get_ref(), ask.quota).map_err(|why| EngineFault {
                    why,
                    is_lost: false,
                })?;
                let ends = verdict.is_err() && ask.is_enforced && ask.max_wait.is_some();
                verdicts.push(verdict);
                if ends {
                    break;
                }
            }
            Ok(verdicts)
        })
    }
}

fn request(domain: String, ask: &Ask) -> RateLimitRequest {
    let mut entries = vec![Entry {
        key: "rule".to_owned(),
        value: ask.rule.to_string(),
    }];
    entries.extend(ask.key.clone().map(|value| Entry {
        key: "key".to_owned(),
        value,
    }));
    let unit = match ask.quota.unit_seconds.get() {
        1 => Unit::Second,
        60 => Unit::Minute,
        3_600 => Unit::Hour,
        _ => Unit::Day,
    };
    let limit = Some(Limit {
        requests_per_unit: ask.quota.requests.get(),
        unit: unit.into(),
    });
    RateLimitRequest {
        domain,
        descriptors: vec![Descriptor { entries, limit }],
        hits_addend: u32::try_from(ask.tokens).unwrap_or(u32::MAX),
    }
}

/// # Errors
/// If the answer says neither yes nor no.
fn verdict(
    answer: &RateLimitResponse,
    quota: QuotaSpec,
) -> Result<Result<Granted, Limited>, String> {
    let status = answer.statuses.first();
    let reset = status.and_then(|status| status.duration_until_reset.as_ref());
    let reset = reset.map(|reset| {
        Duration::new(
            reset.seconds.try_into().unwrap_or_default(),
            reset.nanos.try_into().unwrap_or_default(),
        )
    });
    let reset = reset.unwrap_or(Duration::from_secs(quota.unit_seconds.get()));
    match answer.overall_code() {
        // A domain without this limit counts nothing, and tells of nothing left.
        Code::Ok => Ok(Ok(Granted {
            wait: Duration::ZERO,
            left: status.map_or_else(|| quota.burst.get(), |status| status.limit_remaining),
            more: reset,
        })),
        Code::OverLimit => Ok(Err(Limited { retry_after: reset })),
        Code::Unknown => Err("the rate limit service knows neither yes nor no".to_owned()),
    }
}
