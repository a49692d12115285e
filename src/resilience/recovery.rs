//! The escalation of recovery actions while a problem persists.
//!
//! A trigger is active or not. While it is active, the rungs of a ladder are taken one at a
//! time, from mild to strong, with a cooldown in between. After the last rung no further action
//! follows. When the trigger clears, the actions are undone where possible, and the ladder is
//! reset. Actions are capped per hour, because an action that does not help must not cause more
//! harm. The cap and the cooldown also apply across episodes.
//!
//! | state | trigger is active | trigger is not active |
//! | --- | --- | --- |
//! | idle | first rung, if cooldown and cap allow | - |
//! | acting | next rung, if cooldown and cap allow | undo, then idle |
//!
//! The module does not know the actions, and does not verify that an action helped.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    time::{Duration, Instant},
};

const HOUR: Duration = Duration::from_hours(1);

/// Bounds of a recovery: its rungs, its cooldown and its cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryConfig {
    /// Number of rungs of the ladder.
    pub rungs: NonZeroU32,
    /// Minimum time between two actions.
    pub cooldown: Duration,
    /// Maximum number of actions in any hour.
    pub max_per_hour: NonZeroU32,
}

/// Step that the caller takes for a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a step has an effect only if it is taken"]
pub enum RecoveryStep {
    /// The caller takes this rung, counted from 0.
    TakeRung(u32),
    /// The next rung is due, but the actions of the hour are used.
    ///
    /// This step is returned once, until an action expires from the hour or the trigger clears.
    Capped,
    /// The trigger cleared: the caller undoes the actions of all rungs below this number.
    Undo(u32),
}

/// A recovery ladder and its recent actions.
#[derive(Debug)]
pub struct RecoveryLadder {
    config: RecoveryConfig,
    /// Number of rungs taken in this episode; 0 means idle.
    rungs_taken: u32,
    last_action: Option<Instant>,
    recent_actions: VecDeque<Instant>,
    is_cap_reported: bool,
}

impl RecoveryLadder {
    /// Creates an idle ladder without any actions.
    #[must_use]
    pub fn new(config: RecoveryConfig) -> Self {
        Self {
            config,
            rungs_taken: 0,
            last_action: None,
            recent_actions: VecDeque::new(),
            is_cap_reported: false,
        }
    }

    /// Evaluates the trigger and returns the step that is due now, if there is one.
    pub fn update(&mut self, is_triggered: bool, now: Instant) -> Option<RecoveryStep> {
        if !is_triggered {
            let taken = std::mem::take(&mut self.rungs_taken);
            self.is_cap_reported = false;
            return (taken > 0).then_some(RecoveryStep::Undo(taken));
        }
        if self.rungs_taken > 0 && self.rungs_taken >= self.config.rungs.get() {
            return None;
        }
        if self
            .last_action
            .is_some_and(|last| now < last + self.config.cooldown)
        {
            return None;
        }
        while self
            .recent_actions
            .front()
            .is_some_and(|at| now >= *at + HOUR)
        {
            self.recent_actions.pop_front();
            self.is_cap_reported = false;
        }
        if self.recent_actions.len() >= self.config.max_per_hour.get() as usize {
            return (!std::mem::replace(&mut self.is_cap_reported, true))
                .then_some(RecoveryStep::Capped);
        }
        let rung = self.rungs_taken;
        self.rungs_taken += 1;
        self.last_action = Some(now);
        self.recent_actions.push_back(now);
        Some(RecoveryStep::TakeRung(rung))
    }

    /// Applies new bounds. Rungs and actions so far remain counted.
    pub fn reconfigure(&mut self, config: RecoveryConfig) {
        self.config = config;
    }

    /// Returns the number of rungs taken in the current episode.
    #[must_use]
    pub fn rungs_taken(&self) -> u32 {
        self.rungs_taken
    }
}

#[cfg(test)]
mod tests;
