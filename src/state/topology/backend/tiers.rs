//! The tiers of a backend: endpoints of one priority, with those in the own zone first.

use crate::{
    policy::snapshot::{BackendSpec, EndpointSpec, LoadBalancerSpec},
    resilience::balance::hash_ring::HashRing,
};

/// Endpoints of one priority; if a zone is preferred, only those in it or outside it.
#[derive(Debug)]
pub(super) struct Tier {
    /// Indices of the endpoints, in ascending order.
    pub(super) members: Vec<usize>,
    /// Hash ring for consistent hashing; otherwise empty.
    pub(super) ring: HashRing,
}

/// Groups endpoints into tiers by priority.
///
/// Within a priority, the endpoints in the zone of this instance form a tier before the others,
/// if the zone has at least `min_endpoints_in_zone` of them.
pub(super) fn group_into_tiers(
    spec: &BackendSpec,
    places: &[EndpointSpec],
    zone: Option<&str>,
) -> Vec<Tier> {
    let is_in_zone = |index: usize| {
        places[index]
            .zone
            .as_deref()
            .is_some_and(|endpoint_zone| Some(endpoint_zone) == zone)
    };
    let mut priorities: Vec<u32> = places.iter().map(|endpoint| endpoint.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for priority in priorities {
        let members = (0..places.len()).filter(|index| places[*index].priority == priority);
        let (same_zone, other_zones): (Vec<usize>, Vec<usize>) =
            members.partition(|index| is_in_zone(*index));
        let prefers_zone = spec
            .min_endpoints_in_zone
            .is_some_and(|minimum| same_zone.len() >= minimum as usize);
        if prefers_zone {
            groups.extend([same_zone, other_zones]);
        } else {
            let mut all = [same_zone, other_zones].concat();
            all.sort_unstable();
            groups.push(all);
        }
    }
    let ring = |members: &[usize]| {
        let ring_entries = members.iter().map(|index| {
            (
                u32::try_from(*index).unwrap_or(u32::MAX),
                places[*index].address.to_string(),
                f64::from(places[*index].weight.get()),
            )
        });
        HashRing::new(&ring_entries.collect::<Vec<_>>())
    };
    let uses_ring = matches!(spec.load_balancer, LoadBalancerSpec::ConsistentHash { .. });
    groups.retain(|members| !members.is_empty());
    groups
        .into_iter()
        .map(|members| Tier {
            ring: if uses_ring {
                ring(&members)
            } else {
                HashRing::default()
            },
            members,
        })
        .collect()
}
