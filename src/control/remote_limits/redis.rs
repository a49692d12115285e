//! Asking a Redis.
//!
//! All requests share one connection: what they ask while an answer is on its way goes out together. The buckets follow Redis's own
//! clock, so that the clocks of the instances do not matter, and each changes in one step there.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use redis::{AsyncConnectionConfig, ErrorKind, RedisError, aio::MultiplexedConnection};

use super::{PATIENCE, SILENT};
use crate::{
    clock,
    policy::snapshot::RedisSpec,
    state::{
        rate_limit::{Granted, Limited},
        remote_limits::{Answer, Ask, RateLimitEngine, RemoteLimits},
    },
};

/// GCRA: a bucket is the time at which it will be full again, in microseconds. Numbers are written out by hand, because Lua would round
/// large ones when it makes text of them.
const SCRIPT: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local interval, burst, tokens, patience = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local new = full + tokens * interval
if patience < 0 then
  new = math.max(full, math.min(new, now + 2 * burst))
end
local wait = new - now - burst
if patience >= 0 and wait > patience then
  return {0, math.ceil(wait), 0}
end
local life = math.ceil((new - now) / 1000)
if life > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', new), 'PX', life)
end
return {1, math.max(0, math.ceil(wait)), math.max(0, math.floor(-wait / interval))}
";

/// A connection on which the script is known.
pub(super) struct Redis {
    connection: MultiplexedConnection,
    /// The script's hash.
    script: Arc<str>,
    prefix: Arc<str>,
}

impl Redis {
    pub(super) async fn open(spec: &RedisSpec) -> Result<Self, String> {
        let client = redis::Client::open(spec.url.as_str()).map_err(|error| explain(&error))?;
        // A request bounds its own wait; this bounds what waits for nobody.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        let connecting = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let script = load(&mut connection).await?;
            Ok(Self { connection, script: script.into(), prefix: spec.prefix.clone() })
        };
        let connected = clock::within(Some(PATIENCE * 2), connecting).await;
        connected.map_err(|clock::Elapsed| SILENT.to_owned())?.map_err(|error: RedisError| explain(&error))
    }

    /// A sign of life that is of use: a Redis that was emptied has forgotten the script.
    pub(super) async fn shows_life(&mut self) -> Result<(), String> {
        load(&mut self.connection).await.map(drop).map_err(|error| explain(&error))
    }

    pub(super) fn engine(&self, limits: Weak<RemoteLimits>) -> Engine {
        Engine { connection: self.connection.clone(), script: self.script.clone(), prefix: self.prefix.clone(), limits }
    }
}

async fn load(connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
    redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async(connection).await
}

/// What went wrong, and the mend where it is known.
fn explain(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::AuthenticationFailed => format!("it refuses the name or the password, mend `url`: {error}"),
        ErrorKind::InvalidClientConfig => format!("it cannot be reached so, mend `url`: {error}"),
        _ => error.to_string(),
    }
}

/// Asks on a connection.
#[derive(Debug)]
pub(super) struct Engine {
    connection: MultiplexedConnection,
    script: Arc<str>,
    prefix: Arc<str>,
    limits: Weak<RemoteLimits>,
}

impl RateLimitEngine for Engine {
    fn ask(&self, asks: Vec<Ask>) -> Answer {
        let mut pipeline = redis::pipe();
        for Ask { rule, key, quota, tokens, max_wait } in asks {
            let micros = |time: Duration| time.as_secs_f64() * 1e6;
            let key = key.map(|key| format!(":{key}")).unwrap_or_default();
            let asked = pipeline.cmd("EVALSHA").arg(&*self.script).arg(1).arg(format!("{}:{rule}{key}", self.prefix));
            asked.arg(micros(quota.interval())).arg(micros(quota.burst_time())).arg(tokens).arg(max_wait.map_or(-1.0, micros));
        }
        let (mut connection, limits) = (self.connection.clone(), self.limits.clone());
        Box::pin(async move {
            let answer: Result<Vec<(u8, u64, u32)>, _> = pipeline.query_async(&mut connection).await;
            // Whoever keeps the connection looks after it at once.
            let answer = answer.inspect_err(|_| {
                if let Some(limits) = limits.upgrade() {
                    limits.report_broken();
                }
            });
            answer.map(|answers| answers.into_iter().map(verdict).collect()).map_err(|error| error.to_string())
        })
    }
}

fn verdict((is_granted, wait, left): (u8, u64, u32)) -> Result<Granted, Limited> {
    let wait = Duration::from_micros(wait);
    if is_granted == 1 { Ok(Granted { wait, left }) } else { Err(Limited { retry_after: wait }) }
}
