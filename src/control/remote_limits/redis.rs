//! Rate limit engine on Redis.
//!
//! This module executes bucket requests as one atomic script. All requests share one
//! multiplexed connection. The script uses the clock of Redis, so that clock differences
//! between instances have no effect. The module does not decide when to reconnect.

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind, aio::MultiplexedConnection,
};

use crate::{
    policy::snapshot::RedisSpec,
    state::policies::{
        rate_limit::{RateLimitGrant, RateLimited},
        remote_limits::{BucketRequest, EngineFault, EngineResponse, RateLimitEngine},
    },
};

/// GCRA script. A bucket is the time at which it is full again, in microseconds since
/// 2023-11-14 22:13:20 UTC. The recent epoch keeps the numbers small and therefore precise.
///
/// A request without a maximum wait is always charged, up to a debt of one burst. Buckets are
/// charged in order. If an enforced bucket rejects, the script stops, so that a request that is
/// rejected by its own limit takes no tokens from shared buckets. `string.format` is needed
/// because Lua rounds numbers when it converts them to text.
const GCRA_SCRIPT: &str = r"
local now = redis.call('TIME')
now = (now[1] - 1700000000) * 1000000 + now[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local interval, burst = tonumber(ARGV[5*i-4]), tonumber(ARGV[5*i-3])
  local tokens, patience = tonumber(ARGV[5*i-2]), tonumber(ARGV[5*i-1])
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

/// Connection to a Redis that has loaded the script.
#[derive(Debug, Clone)]
pub(super) struct RedisEngine {
    connection: MultiplexedConnection,
    /// SHA-1 hash by which Redis identifies the script.
    script_sha: Arc<str>,
    prefix: Arc<str>,
}

impl RedisEngine {
    pub(super) async fn open(spec: &RedisSpec, timeout: Duration) -> Result<Self, String> {
        let client =
            redis::Client::open(spec.url.as_str()).map_err(|error| describe_error(&error))?;
        // Proxied requests apply their own timeout of at most one second. This one limits
        // commands without a waiting request.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
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

    /// Checks the connection by loading the script again. A Redis that was restarted or flushed
    /// has lost the script.
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

/// Returns the error message, with the fix where it is known.
fn describe_error(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            format!("it rejects the name or the password, correct `url`: {error}")
        }
        ErrorKind::InvalidClientConfig => {
            format!("it cannot be reached like this, correct `url`: {error}")
        }
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

/// Classifies a failed command. A lost connection is left to the liveness check. A read-only
/// replica passes that check but cannot charge, so it counts as lost.
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
