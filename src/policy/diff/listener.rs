//! Differences between two versions of a listener.

use crate::policy::{
    diff::changes::Changes,
    snapshot::{ListenerLimitSpec, ListenerSpec},
};

pub(super) fn diff(old: &ListenerSpec, new: &ListenerSpec, changes: &mut Changes) {
    changes.value("address", &old.address, &new.address);
    changes.value("direction", &old.direction, &new.direction);
    changes.value("protocol", &old.protocol, &new.protocol);
    changes.list(
        "clientIPDetection.xForwardedFor.trustedCIDRs",
        &old.trusted_proxies,
        &new.trusted_proxies,
    );
    changes.hidden("tls", &old.tls, &new.tls, "it applies to new connections");
    let ListenerLimitSpec {
        max_connections,
        header_timeout,
        idle_timeout,
        max_header_bytes,
        max_headers,
        max_concurrent_streams,
        max_body_bytes,
    } = new.limits;
    let old = old.limits;
    changes.value(
        "limits.maxConnections",
        &old.max_connections,
        &max_connections,
    );
    changes.duration("limits.headerTimeout", old.header_timeout, header_timeout);
    changes.duration("limits.idleTimeout", old.idle_timeout, idle_timeout);
    changes.value(
        "limits.maxHeaderBytes",
        &old.max_header_bytes,
        &max_header_bytes,
    );
    changes.value("limits.maxHeaders", &old.max_headers, &max_headers);
    changes.value(
        "limits.maxConcurrentStreams",
        &old.max_concurrent_streams,
        &max_concurrent_streams,
    );
    changes.value("limits.maxBodyBytes", &old.max_body_bytes, &max_body_bytes);
}
