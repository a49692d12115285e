//! The engine of limits that all instances share.

use std::{sync::Arc, time::Duration};

use super::{At, Compiler, backends::MadeBackend, tls::source_place};
use crate::policy::{
    document::{GlobalBackendType, RateLimitService, Redis},
    snapshot::{EngineSpec, GlobalRateLimitSpec, RedisSpec, RemoteSpec, RouteSpec, ServiceSpec},
    units::Span,
};

/// A request that waits longer for a limit than this is worse off than without one.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1);

impl<'a> Compiler<'a> {
    pub(super) fn global_rate_limit(
        &mut self,
        backends: &[(At<'a>, MadeBackend<'a>)],
        routes: &[RouteSpec],
    ) -> Option<GlobalRateLimitSpec> {
        let (at, written) = self.at_most_one("globalRateLimit", |document| {
            document.spec.global_rate_limit.as_ref()
        })?;
        let timeout = written
            .timeout
            .map_or(Duration::from_millis(20), |span| span.0);
        if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
            let message = format!(
                "a request waits for the engine for at least 1ms and at most {}",
                Span(LONGEST_TIMEOUT)
            );
            self.error(&at.key("timeout"), message)
                .hint("20ms is the default");
        }
        let is_used = routes
            .iter()
            .any(|route| route.rate_limits.rules.iter().any(|rule| rule.is_global));
        if !is_used && !self.is_partial {
            self.warning(&at, "no rule uses this")
                .hint("write the rules of all instances under `rateLimit.global.rules`");
        }
        let (of, at) = (&written.backend, at.key("backend"));
        let given = [
            ("redis", of.redis.is_some()),
            ("rateLimitService", of.rate_limit_service.is_some()),
            ("replicas", of.replicas.is_some()),
        ];
        let (wanted, like) = match of.kind {
            GlobalBackendType::Redis => ("redis", "{url: \"redis://HOST:6379\"}"),
            GlobalBackendType::RateLimitService => (
                "rateLimitService",
                "{url: \"http://HOST:8081\", domain: NAME}",
            ),
            GlobalBackendType::Replicas => ("replicas", "{backend: NAME}"),
        };
        for (other, _) in given
            .iter()
            .filter(|(name, is_given)| *is_given && *name != wanted)
        {
            self.error(
                &at.key(other),
                format!("this is for another type than {:?}", of.kind),
            )
            .hint(format!("take `{other}` out, or change `type`"));
        }
        let engine = match (of.kind, &of.redis, &of.rate_limit_service, &of.replicas) {
            (GlobalBackendType::Redis, Some(redis), ..) => self.redis(&at.key("redis"), redis)?,
            (GlobalBackendType::RateLimitService, _, Some(service), _) => {
                self.rate_limit_service(&at.key("rateLimitService"), service, routes)?
            }
            (GlobalBackendType::Replicas, .., Some(replicas)) => {
                let names = || backends.iter().map(|(_, backend)| &*backend.spec.name);
                let Some(backend) = names().position(|name| *name == *replicas.backend) else {
                    self.unknown_reference(
                        &at.key("replicas").key("backend"),
                        "backend",
                        &replicas.backend,
                        names(),
                    );
                    return None;
                };
                EngineSpec::Replicas {
                    backend,
                    name: Arc::from(replicas.backend.as_str()),
                }
            }
            _ => {
                self.error(
                    &at,
                    format!("an engine of type {:?} needs `{wanted}`", of.kind),
                )
                .hint(format!("add `{wanted}: {like}`"));
                return None;
            }
        };
        Some(GlobalRateLimitSpec {
            engine,
            timeout,
            fails_closed: written.fail_closed,
        })
    }

    fn redis(&mut self, at: &At<'a>, redis: &Redis) -> Option<EngineSpec> {
        if !cfg!(feature = "redis") {
            self.error(at, "this build knows no Redis").hint(
                "build with the feature `redis`, which the default has, or write `type: Replicas`",
            );
        }
        let address = redis.url.parse::<http::Uri>().ok().and_then(|uri| {
            let is_scheme = matches!(uri.scheme_str(), Some("redis" | "rediss"));
            let is_database = uri
                .path()
                .trim_start_matches('/')
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                && uri.query().is_none();
            let host = uri
                .host()
                .filter(|host| !host.is_empty() && is_scheme && is_database)?;
            Some(format!("{host}:{}", uri.port_u16().unwrap_or(6379)))
        });
        let Some(address) = address else {
            // The message does not repeat it: there may be a password in it.
            let hint = "write `redis://HOST:PORT`, `redis://USER:PASSWORD@HOST:PORT/DATABASE`, or `rediss://` for TLS; what is special in a password is written as %XX";
            self.error(&at.key("url"), "this is not the address of a Redis")
                .hint(hint);
            return None;
        };
        let prefix = redis
            .prefix
            .clone()
            .unwrap_or_else(|| at.located.document.metadata.name.clone());
        if prefix.is_empty()
            || prefix
                .contains(|character: char| character.is_whitespace() || character.is_control())
        {
            self.error(&at.key("prefix"), "this cannot begin a key")
                .hint("write the name of the service");
        }
        Some(EngineSpec::Remote(RemoteSpec::Redis(RedisSpec {
            url: redis.url.clone(),
            address: address.into(),
            prefix: Arc::from(prefix),
            place: source_place(&at.key("url")),
        })))
    }

    fn rate_limit_service(
        &mut self,
        at: &At<'a>,
        service: &RateLimitService,
        routes: &[RouteSpec],
    ) -> Option<EngineSpec> {
        if !cfg!(feature = "rls") {
            self.error(at, "this build speaks to no rate limit service")
                .hint("build with `--features rls`, or write `type: Redis`");
        }
        let is_url = service.url.parse::<http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.path() == "/"
        });
        if !is_url {
            self.error(
                &at.key("url"),
                format!(
                    "`{}` is not the address of a rate limit service",
                    service.url
                ),
            )
            .hint("write `http://HOST:PORT`, or `https://HOST:PORT` for TLS");
            return None;
        }
        for rule in routes
            .iter()
            .flat_map(|route| &route.rate_limits.rules)
            .filter(|rule| rule.is_global)
        {
            let is_window =
                rule.quota.burst == rule.quota.requests && rule.max_wait.is_zero() && rule.cost > 0;
            if !is_window {
                let message = format!(
                    "a rate limit service cannot keep the rule `{}`: it counts in whole units, without `burst`, `queue` and a cost of 0",
                    rule.name
                );
                self.error(at, message)
                    .hint("take those out of the rule, or write `type: Redis`");
            }
        }
        let domain = service
            .domain
            .clone()
            .unwrap_or_else(|| at.located.document.metadata.name.clone());
        Some(EngineSpec::Remote(RemoteSpec::Service(ServiceSpec {
            url: Arc::from(service.url.as_str()),
            domain: domain.into(),
            place: source_place(&at.key("url")),
        })))
    }
}
