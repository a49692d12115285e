//! Compiles the engine of the rate limits that all instances share.
//!
//! It checks that the engine supports every global rule, and that this build contains the
//! engine. It does not connect to the engine.

use std::{sync::Arc, time::Duration};

use crate::policy::{
    compile::{backends::CompiledBackend, compiler::Compiler, tls::source_location},
    document::{GlobalRateLimitEngine, GlobalRateLimitEngineType, RateLimitService, RedisSection},
    report::FieldLocation,
    snapshot::{
        GlobalRateLimitSpec, RateLimitEngineSpec, RateLimitServiceSpec, RedisSpec,
        RemoteEngineSpec, RouteSpec,
    },
    units::{PolicyDuration, duration_or},
};

/// Maximum time to wait for the engine. A longer wait would harm a request more than no limit.
const MAX_ENGINE_TIMEOUT: Duration = Duration::from_secs(1);

impl<'a> Compiler<'a> {
    pub(super) fn compile_global_rate_limit(
        &mut self,
        backends: &[(FieldLocation<'a>, CompiledBackend<'a>)],
        routes: &[RouteSpec],
    ) -> Option<GlobalRateLimitSpec> {
        let (at, section) = self.find_single_section("globalRateLimit", |document| {
            document.spec.global_rate_limit.as_ref()
        })?;
        let timeout = duration_or(section.timeout, Duration::from_millis(20));
        if timeout.is_zero() || timeout > MAX_ENGINE_TIMEOUT {
            let message = format!(
                "`timeout` must be from 1ms to {}",
                PolicyDuration(MAX_ENGINE_TIMEOUT)
            );
            self.report
                .error(&at.key("timeout"), message)
                .hint("20ms is the default");
        }
        let is_used = routes
            .iter()
            .any(|route| route.rate_limits.rules.iter().any(|rule| rule.is_global));
        if !is_used && !self.report.is_partial {
            self.report
                .warning(&at, "no rule uses this")
                .hint("write the rules of all instances under `rateLimit.global.rules`");
        }
        let engine = self.compile_engine(&at.key("backend"), &section.backend, backends, routes)?;
        Some(GlobalRateLimitSpec {
            engine,
            timeout,
            fails_closed: section.fail_closed,
        })
    }

    /// Compiles the engine that `type` names, and reports the fields of other types.
    fn compile_engine(
        &mut self,
        at: &FieldLocation<'_>,
        engine_section: &GlobalRateLimitEngine,
        backends: &[(FieldLocation<'a>, CompiledBackend<'a>)],
        routes: &[RouteSpec],
    ) -> Option<RateLimitEngineSpec> {
        let (required_key, example) = match engine_section.kind {
            GlobalRateLimitEngineType::Redis => ("redis", "{url: \"redis://HOST:6379\"}"),
            GlobalRateLimitEngineType::RateLimitService => (
                "rateLimitService",
                "{url: \"http://HOST:8081\", domain: NAME}",
            ),
            GlobalRateLimitEngineType::Replicas => ("replicas", "{backend: NAME}"),
        };
        self.check_engine_fields(at, engine_section, required_key);
        let engine = match (
            engine_section.kind,
            &engine_section.redis,
            &engine_section.rate_limit_service,
            &engine_section.replicas,
        ) {
            (GlobalRateLimitEngineType::Redis, Some(redis), ..) => {
                self.compile_redis_engine(&at.key("redis"), redis)?
            }
            (GlobalRateLimitEngineType::RateLimitService, _, Some(service), _) => {
                self.compile_rate_limit_service(&at.key("rateLimitService"), service, routes)?
            }
            (GlobalRateLimitEngineType::Replicas, .., Some(replicas)) => {
                let at = at.key("replicas").key("backend");
                let backend = self.find_backend(&at, &replicas.backend, backends)?;
                RateLimitEngineSpec::Replicas {
                    backend,
                    name: Arc::from(replicas.backend.as_str()),
                }
            }
            _ => {
                self.report
                    .error(
                        at,
                        format!(
                            "an engine of type {} needs `{required_key}`",
                            engine_section.kind
                        ),
                    )
                    .hint(format!("add `{required_key}: {example}`"));
                return None;
            }
        };
        Some(engine)
    }

    /// Reports the fields that belong to an engine of another type.
    fn check_engine_fields(
        &mut self,
        at: &FieldLocation<'_>,
        section: &GlobalRateLimitEngine,
        required_key: &str,
    ) {
        let fields = [
            ("redis", section.redis.is_some()),
            ("rateLimitService", section.rate_limit_service.is_some()),
            ("replicas", section.replicas.is_some()),
        ];
        for (other, _) in fields
            .iter()
            .filter(|(key, is_set)| *is_set && *key != required_key)
        {
            self.report
                .error(
                    &at.key(other),
                    format!("`{other}` does not apply to type {}", section.kind),
                )
                .hint(format!("remove `{other}`, or change `type`"));
        }
    }

    fn compile_redis_engine(
        &mut self,
        at: &FieldLocation<'_>,
        redis: &RedisSection,
    ) -> Option<RateLimitEngineSpec> {
        if !cfg!(feature = "redis") {
            self.report.error(at, "this build knows no Redis").hint(
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
            // The message does not repeat the URL, because it may contain a password.
            let hint = "write `redis://HOST:PORT`, `redis://USER:PASSWORD@HOST:PORT/DATABASE`, or \
                        `rediss://` for TLS; percent-encode special characters of the password";
            self.report
                .error(&at.key("url"), "this is not the address of a Redis")
                .hint(hint);
            return None;
        };
        let prefix = redis
            .prefix
            .clone()
            .unwrap_or_else(|| at.source.name.clone());
        if prefix.is_empty()
            || prefix
                .contains(|character: char| character.is_whitespace() || character.is_control())
        {
            self.report
                .error(&at.key("prefix"), "this cannot begin a key")
                .hint("write the name of the service");
        }
        Some(RateLimitEngineSpec::Remote(RemoteEngineSpec::Redis(
            RedisSpec {
                url: redis.url.clone(),
                display_address: address.into(),
                key_prefix: Arc::from(prefix),
                location: source_location(&at.key("url")),
            },
        )))
    }

    fn compile_rate_limit_service(
        &mut self,
        at: &FieldLocation<'_>,
        service: &RateLimitService,
        routes: &[RouteSpec],
    ) -> Option<RateLimitEngineSpec> {
        if !cfg!(feature = "rls") {
            self.report
                .error(at, "this build speaks to no rate limit service")
                .hint("build with `--features rls`, or write `type: Redis`");
        }
        if !self.check_rate_limit_service_url(&at.key("url"), &service.url) {
            return None;
        }
        for rule in routes
            .iter()
            .flat_map(|route| &route.rate_limits.rules)
            .filter(|rule| rule.is_global)
        {
            let fits_fixed_window =
                rule.quota.burst == rule.quota.requests && rule.max_wait.is_zero() && rule.cost > 0;
            if !fits_fixed_window {
                let message = format!(
                    "a rate limit service cannot keep the rule `{}`: it counts in whole units, \
                     without `burst`, `queue` and a cost of 0",
                    rule.name
                );
                self.report
                    .error(at, message)
                    .hint("remove them from the rule, or write `type: Redis`");
            }
        }
        let domain = service
            .domain
            .clone()
            .unwrap_or_else(|| at.source.name.clone());
        Some(RateLimitEngineSpec::Remote(RemoteEngineSpec::Service(
            RateLimitServiceSpec {
                url: Arc::from(service.url.as_str()),
                domain: domain.into(),
                location: source_location(&at.key("url")),
            },
        )))
    }

    /// Returns whether the URL is the address of a service without user information, and reports
    /// any other.
    ///
    /// User information would be shown, because the URL is part of differences and logs.
    fn check_rate_limit_service_url(&mut self, at: &FieldLocation<'_>, url: &str) -> bool {
        if url.contains('@') {
            // The message does not repeat the URL, because it may contain a password.
            self.report
                .error(
                    at,
                    "the URL of a rate limit service must not contain user information",
                )
                .hint("remove `USER:PASSWORD@`; differences and logs show the URL");
            return false;
        }
        let is_url = url.parse::<http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.path() == "/"
        });
        if !is_url {
            self.report
                .error(
                    at,
                    format!("`{url}` is not the address of a rate limit service"),
                )
                .hint("write `http://HOST:PORT`, or `https://HOST:PORT` for TLS");
        }
        is_url
    }
}
