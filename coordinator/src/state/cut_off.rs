//! A coordinator that hears of few of its members at once.
//!
//! One member that falls silent has died, or stands still, or is cut off. When most of them fall
//! silent in the same moment it is the coordinator that is cut off: its network, its machine. They
//! work on meanwhile and look for it, so nothing is gained by counting them as lost, one after the
//! other, and everything by waiting for a while.

use std::time::Duration;

use mks2_proto::failure::Failure;

use super::{Machine, Member};

impl Machine {
    /// Whether the silent are awaited. The tick on which the wait ends loses those that are still
    /// silent.
    pub(super) fn is_cut_off(&mut self, now: Duration) -> bool {
        if let Some(until) = self.cut_off {
            let quiet = self.quiet(now);
            // When most are back it is not the coordinator that keeps the others away for long.
            let until = match 2 * quiet < self.those_at_work().count() {
                true => until.min(now + self.config.limits.leniency),
                false => until,
            };
            let waits = now < until && quiet > 0;
            self.cut_off = waits.then_some(until);
            return waits;
        }
        let limits = self.config.limits;
        let is_cut_off = self.run.active().is_some()
            && self.those_at_work().any(|member| self.is_late(now, member))
            && 2 * self.quiet(now) > self.those_at_work().count();
        if !is_cut_off || planted!(BlamedWhenCutOff) {
            return false;
        }
        let until = now + limits.cut_off;
        self.cut_off = Some(until);
        // Their streams may break, too, and they come with others.
        self.lenient_until = self.lenient_until.max(until);
        let failure = Failure::run_failed(
            "the coordinator cannot hear its workers",
            self.silent_words(self.quiet(now), limits.cut_off),
            "",
        );
        self.notice(&failure, None);
        true
    }

    fn silent_words(&self, quiet: usize, patience: Duration) -> String {
        let who = match self.those_at_work().count() {
            1 => "its only worker fell silent".to_owned(),
            all => format!("{quiet} of {all} fell silent together"),
        };
        let seconds = patience.as_secs();
        format!("{who}: it may be cut off itself, and waits {seconds} s for their return")
    }

    /// In words, while it is.
    pub(super) fn cut_off_words(&self) -> Option<String> {
        self.cut_off?;
        let words = "the coordinator cannot hear its workers, and waits for their return";
        Some(words.to_owned())
    }

    /// Whether the streams of several, and of most of them, broke lately. Who was awaited for as long as
    /// anybody is, is not awaited again.
    pub(super) fn broke_most_streams(&self, now: Duration) -> bool {
        if self.cut_off.is_some_and(|until| now >= until) {
            return false;
        }
        let leniency = self.config.limits.leniency;
        let is_fresh = |since: Duration| now.saturating_sub(since) < leniency;
        let broke = |one: &&Member| one.detached.as_ref().is_some_and(|(at, _)| is_fresh(*at));
        let broken = self.those_at_work().filter(broke).count();
        broken > 1 && 2 * broken > self.those_at_work().count()
    }

    /// How many have missed several signs of life.
    fn quiet(&self, now: Duration) -> usize {
        let limit = self.config.limits.silence / 2;
        let is_quiet = |member: &&Member| self.silence(now, member) > limit;
        self.those_at_work().filter(is_quiet).count()
    }

    fn those_at_work(&self) -> impl Iterator<Item = &Member> {
        let members = self.members.values();
        members.filter(|member| member.finished.is_none())
    }
}
