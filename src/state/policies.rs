//! Shares the pure state machines of the resilience policies between requests.
//!
//! Each submodule puts a lock around one pure state machine of [`crate::resilience`]. A guard
//! returns each permit exactly once, even if the call is cancelled. The exceptions are:
//!
//! - [`stale`] and [`bucket_store`], which store data
//! - [`tally`], which counts
//! - [`remote_limits`], which holds a connection
//!
//! `define_policy_states` is the only list of the states of optional policies between a route and
//! a backend. [`crate::state::registry`] joins them with a policy set.

pub mod admission_control;
pub mod breaker;
pub mod bucket_store;
pub mod concurrency_limit;
pub mod destination_policy;
pub mod hedge;
pub mod rate_limit;
pub mod remote_limits;
pub mod retry_budget;
pub mod stale;
pub mod tally;

use std::sync::Arc;

use crate::{
    policy::sections::PolicySpec,
    state::{
        policies::{
            admission_control::AdmissionState,
            concurrency_limit::ConcurrencyLimitState,
            destination_policy::{AttemptObserver, DestinationPolicyState},
            hedge::HedgeState,
            stale::StaleState,
        },
        table::{BuildContext, Table},
    },
};

macro_rules! define_policy_states {
    ($($(#[$doc:meta])* $name:ident: $state:ty,)*) => {
        /// State of the optional policies between a route and a backend; `None` without the
        /// policy.
        #[derive(Debug, Default)]
        pub struct DestinationPolicyStates {
            $($(#[$doc])* pub $name: Option<Arc<$state>>,)*
            /// Those of the states that observe the results of attempts; `None` if there are
            /// none.
            pub observers: Option<Arc<[Arc<dyn AttemptObserver>]>>,
        }

        /// All states of each kind, sorted by name.
        #[derive(Debug, Default)]
        pub struct PolicyStates {
            $($(#[$doc])* pub $name: Vec<Arc<$state>>,)*
        }

        /// All states of each kind by name, which survive reloads.
        #[derive(Debug, Default)]
        pub struct PolicyTables {
            $($name: Table<$state>,)*
        }

        impl PolicyTables {
            /// Returns the states that a policy names, which are created or reconfigured.
            pub fn ensure(
                &mut self,
                policy: &PolicySpec,
                context: BuildContext<'_>,
            ) -> DestinationPolicyStates {
                let mut observers = Vec::new();
                $(
                    let $name = <$state>::select_spec(policy).map(|(name, spec)| {
                        let state = self.$name.ensure(name, spec, context);
                        observers.extend(state.clone().into_observer());
                        state
                    });
                )*
                DestinationPolicyStates {
                    $($name,)*
                    observers: (!observers.is_empty()).then(|| observers.into()),
                }
            }

            /// Returns all states, sorted by name.
            #[must_use]
            pub fn sorted(&self) -> PolicyStates {
                PolicyStates {
                    $($name: self.$name.sorted(),)*
                }
            }

            /// Removes the states that were not used since the last call.
            pub fn remove_unused(&mut self) {
                $(self.$name.remove_unused();)*
            }
        }
    };
}

define_policy_states! {
    /// Admission control: the success rate that decides which share of the requests is rejected.
    admission_control: AdmissionState,
    /// Concurrency limit: the requests in flight and the queue in front of them.
    concurrency_limit: ConcurrencyLimitState,
    /// Estimate of the hedging delay.
    hedge: HedgeState,
    /// Cache of stale responses.
    stale_cache: StaleState,
}
