//! Asking a Redis.
//!
//! All requests share one connection: what they ask while an answer is on its way goes out together. The buckets follow Redis's own
//! clock, so that the clocks of the instances do not matter, and each changes in one step there.

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind, aio::MultiplexedConnection,
};

use crate::{
    control::remote_limits::ENGINE_TIMEOUT,
    policy::snapshot::RedisSpec,
    state::policies::{
        rate_limit::{RateLimitGrant, RateLimited},
        remote_limits::{BucketRequest, EngineFault, EngineResponse, RateLimitEngine},
    },
};

/// GCRA: a bucket is the time at which it will be full again, in microseconds since a day in 2023; the smaller the
/// numbers, the finer they are.
/// Buckets are asked in turn, and those behind one that refuses are not: who is refused by its own drains none that all share. Lua would
/// round numbers when it makes text of them, so they are written out.
const GCRA_SCRIPT: &str = r"
local now = redis.call('TIME')
now = (now[1] - 1700000000) * 1000000 + now[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local interval, burst, tokens, patience = tonumber(ARGV[5*i-4]), tonumber(ARGV[5*i-3]), tonumber(ARGV[5*i-2]), tonumber(ARGV[5*i-1])
  local full = math.max(tonumber(redis.call('GET', key) or 0), now)
  local new = full + tokens * interval
  if patience < 0 then
    new = math.max(full, math.min(new, now + 2 * burst))
  end
  local wait = new - now - burst
  if patience >= 0 and wait > patience then
    answers[i] = {0, math.ceil(wait), 0}
    if ARGV[5*i] == '1' then break end
  else
    local life = math.ceil((new - now) / 1000)
    if life > 0 then
      redis.call('SET', key, string.format('%.17g', new), 'PX', life)
    end
    answers[i] = {1, math.max(0, math.ceil(wait)), math.max(0, math.floor(-wait / interval))}
  end
end
return answers
";

/// A connection on which the script is known.
#[derive(Debug, Clone)]
pub(super) struct RedisEngine {
    connection: MultiplexedConnection,
    /// The script's hash.
    script_sha: Arc<str>,
    prefix: Arc<str>,
}

impl RedisEngine {
    pub(super) async fn open(spec: &RedisSpec) -> Result<Self, String> {
        let client =
            redis::Client::open(spec.url.as_str()).map_err(|error| describe_error(&error))?;
        // A request bounds its own wait; this bounds what waits for nobody.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ENGINE_TIMEOUT))
            .set_response_timeout(Some(ENGINE_TIMEOUT));
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| describe_error(&error))?;
        let script = load_script(&mut connection)
            .await
            .map_err(|error| describe_error(&error))?;
        Ok(Self {
            connection,
            script_sha: script.into(),
            prefix: spec.key_prefix.clone(),
        })
    }

    /// A sign of life that is of use: a Redis that was emptied has forgotten the script.
    pub(super) async fn check_liveness(&mut self) -> Result<(), String> {
        load_script(&mut self.connection)
            .await
            .map(drop)
            .map_err(|error| describe_error(&error))
    }
}

async fn load_script(connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
    redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(GCRA_SCRIPT)
        .query_async(connection)
        .await
}

/// What went wrong, and the mend where it is known.
fn describe_error(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            format!("it refuses the name or the password, mend `url`: {error}")
        }
        ErrorKind::InvalidClientConfig => format!("it cannot be reached so, mend `url`: {error}"),
        _ => error.to_string(),
    }
}

impl RateLimitEngine for RedisEngine {
    fn send_requests(&self, quota_requests: Vec<BucketRequest>) -> EngineResponse {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&*self.script_sha).arg(quota_requests.len());
        for BucketRequest { rule, key, .. } in &quota_requests {
            let key = key
                .as_deref()
                .map(|key| format!(":{key}"))
                .unwrap_or_default();
            command.arg(format!("{}:{rule}{key}", self.prefix));
        }
        for BucketRequest {
            quota,
            tokens,
            max_wait,
            is_enforced,
            ..
        } in &quota_requests
        {
            let micros = |time: Duration| time.as_secs_f64() * 1e6;
            command
                .arg(micros(quota.emission_interval()))
                .arg(micros(quota.refill_duration()))
                .arg(*tokens)
                .arg(max_wait.map_or(-1.0, micros))
                .arg(u8::from(*is_enforced));
        }
        let intervals: Vec<Duration> = quota_requests
            .iter()
            .map(|ask| ask.quota.emission_interval())
            .collect();
        let mut connection = self.connection.clone();
        Box::pin(async move {
            let response: Result<Vec<(u8, u64, u32)>, _> =
                command.query_async(&mut connection).await;
            response
                .map(|responses| {
                    responses
                        .into_iter()
                        .zip(intervals)
                        .map(parse_verdict)
                        .collect()
                })
                .map_err(|error| to_engine_fault(&error))
        })
    }
}

/// What is gone is found out by asking for a sign of life; what may only be read is no use either, and lives.
fn to_engine_fault(error: &RedisError) -> EngineFault {
    EngineFault {
        reason: describe_error(error),
        is_connection_lost: error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly),
    }
}

fn parse_verdict(
    ((is_granted, wait, left), interval): ((u8, u64, u32), Duration),
) -> Result<RateLimitGrant, RateLimited> {
    let wait = Duration::from_micros(wait);
    if is_granted == 1 {
        Ok(RateLimitGrant {
            wait,
            remaining: left,
            reset_after: interval,
        })
    } else {
        Err(RateLimited { retry_after: wait })
    }
}
