"""The safeguards that `python -m tests.mutations` takes out, and the tests that must fail then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """One safeguard that is taken out.

    :param removes: the safeguard, in a sentence.
    :param file: where it is.
    :param old: its source; it must stand exactly once in the file.
    :param new: the source without it.
    :param tests: the node ids of the tests that catch it, without parameters.
    :param hangs: whether the tests end by the time limit.
    """

    name: str
    removes: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    hangs: bool = False


def _in(module: str, *tests: str) -> tuple[str, ...]:
    return tuple(f"tests/{module}.py::{test}" for test in tests)


_ROTATION = "test_all_works_over_tls_with_the_documented_rights_and_passwords_rotate"

_DOMAIN = (
    Mutation(
        "newest-mark",
        "The newest mark wins, in whatever order marks arrive.",
        "bcs/domain/state.py",
        "            return self.at_us > other.at_us\n        return self.outcome",
        "            return True\n        return self.outcome",
        _in("unit/test_law_stories", "TestAnEssaysOwnMark::test_the_newer_mark_of_an_essay_counts_in_both_directions"),
    ),
    Mutation(
        "tie-rule",
        "Of two marks of the same instant, the failed one wins.",
        "bcs/domain/state.py",
        "return self.outcome is Outcome.FAILED and other.outcome is not Outcome.FAILED",
        "return False",
        _in("unit/test_law_stories", "TestAnEssaysOwnMark::test_at_the_same_instant_failed_counts"),
    ),
    Mutation(
        "list-names",
        "A list counts for the essays that it names, and for no other essay.",
        "bcs/domain/progress.py",
        "        covers_due = ending is not None and ending.speaks_for_all\n",
        "        covers_due = ending is not None\n",
        _in(
            "unit/test_law_stories",
            "TestOutcomeLists::test_cj_runs_again_for_an_essay_that_its_success_does_not_name",
        ),
    ),
    Mutation(
        "every-known-essay",
        "A phase is complete only when every known essay has completed it.",
        "bcs/domain/progress.py",
        "return completed == known",
        "return completed > 0",
        _in(
            "unit/test_law_stories",
            "TestOutcomeLists::test_one_spellchecked_essay_of_a_registered_thirty_completes_nothing",
        ),
    ),
    Mutation(
        "definition-each-essay",
        "After a change of a definition, an essay that ran again does not stand for the others.",
        "bcs/domain/progress.py",
        "        if since.complete:\n",
        "        if since.completed:\n",
        _in("property/test_changed_definitions", "test_no_essay_is_pruned_that_ran_only_under_the_old_definition"),
    ),
    Mutation(
        "definition-once",
        "A phase that has completed again under its changed definition does not run once more.",
        "bcs/domain/progress.py",
        "        if since.complete:\n            return progress\n",
        "",
        _in("integration/test_rerun_when_changed", "test_a_changed_phase_runs_again_until_it_has_completed_again"),
    ),
    Mutation(
        "definition-kept",
        "Facts are stored with the definition in use of their phase.",
        "bcs/actors/batches.py",
        "        if definitions := self.definitions():\n",
        "        if definitions := dict[str, str]():\n",
        _in("integration/test_rerun_when_changed", "test_a_changed_phase_runs_again_until_it_has_completed_again"),
    ),
    Mutation(
        "definition-counted",
        "Where a summary is counted, too, only essays that completed a phase later count for its changed definition.",
        "bcs/domain/columns.py",
        "            if since < known:\n",
        "            if not since:\n",
        _in("unit/test_columns", "test_facts_of_another_definition_are_counted_as_evaluated"),
    ),
    Mutation(
        "definition-fingerprint",
        "A stored summary counts only under the definitions that it was made under.",
        "bcs/domain/law.py",
        "        if self.definitions:  #",
        "        if False:  #",
        _in("unit/test_definitions_version", "test_definitions_change_the_law_only_where_they_are_compared"),
    ),
    Mutation(
        "definition-for-the-release-before",
        "The release before can read entries of the history that have definitions.",
        "bcs/storage/history_codec.py",
        " for fact in entry.facts if not isinstance(fact, RecordedUnder)],",
        " for fact in entry.facts],",
        _in("unit/test_history_codec", "test_the_release_before_finds_only_facts_that_it_knows"),
    ),
    Mutation(
        "definition-in-lua",
        "In Redis, the newest time of a definition stays.",
        "bcs/storage/redis/merge_script.py",
        "  ['definition'] = latest,\n",
        "  ['definition'] = {read = latest.read, supersedes = function() return true end},\n",
        _in("integration/test_merge_contract", "test_every_register_keeps_what_the_law_says"),
    ),
    Mutation(
        "definition-in-sql",
        "In PostgreSQL, the newest time of a definition stays.",
        "bcs/storage/postgres/sql.py",
        """\
    ON CONFLICT (batch_key, phase, definition) DO UPDATE SET at_us = excluded.at_us
        WHERE excluded.at_us > known.at_us
""",
        """\
    ON CONFLICT (batch_key, phase, definition) DO UPDATE SET at_us = excluded.at_us
""",
        _in("integration/test_merge_contract", "test_every_register_keeps_what_the_law_says"),
    ),
    Mutation(
        "expected-count",
        "A phase is not complete while essays of the registered number are missing.",
        "bcs/domain/progress.py",
        "else known >= expected",
        "else True",
        _in(
            "unit/test_law_stories",
            "TestOutcomeLists::test_an_outcome_for_three_of_five_registered_completes_nothing",
        ),
    ),
    Mutation(
        "joined",
        "A report or an outcome counts only for the essays that had joined by then.",
        "bcs/domain/progress.py",
        "if since_us > other.at_us or other.at_us < at_least_us:",
        "if other.at_us < at_least_us:",
        _in(
            "unit/test_law_stories",
            "TestWhoSpeaksForTheWholeBatch::test_a_report_does_not_speak_for_an_essay_that_joined_later",
        ),
    ),
    Mutation(
        "was-due",
        "An outcome without lists counts only for essays that completed the required phases.",
        "bcs/domain/progress.py",
        "                    if not for_those_due or _completed_in_all(due, essay_id):\n",
        "                    if True:\n",
        _in(
            "unit/test_law_stories",
            "TestWhoSpeaksForTheWholeBatch::test_a_success_without_a_list_needs_the_required_phases",
        ),
    ),
    Mutation(
        "earliest-copy",
        "A copy of an outcome without a time keeps the earliest time.",
        "bcs/domain/state.py",
        "return self.at_us > other.at_us if key == TIMED else self.at_us < other.at_us",
        "return self.at_us > other.at_us",
        _in(
            "unit/test_law_stories",
            "TestRepeatsWithoutATime::test_a_late_copy_of_an_outcome_does_not_undo_a_report_of_failure",
        ),
    ),
    Mutation(
        "nobody-completed",
        "Under every_essay_settled a phase that nobody has completed is never complete.",
        "bcs/domain/progress.py",
        "return completed > 0 and completed + failed",
        "return completed + failed",
        _in("unit/test_law_stories", "TestSettled::test_a_phase_of_which_all_essays_failed_before_is_never_settled"),
    ),
    Mutation(
        "require-registration",
        "Where registration is required, a batch that is not registered is never complete by counting.",
        "bcs/domain/progress.py",
        "return not law.require_registration if expected is None",
        "return True if expected is None",
        _in(
            "unit/test_law_stories",
            "TestRegistration::test_where_registration_is_required_counting_seen_essays_is_not_enough",
        ),
    ),
    Mutation(
        "invalidated",
        "What is older than an invalidation does not count.",
        "bcs/domain/progress.py",
        "            if mark is not None and mark.at_us < at_least_us:\n",
        "            if False:\n",
        _in("unit/test_law_stories", "TestInvalidation::test_what_is_older_than_an_invalidation_does_not_count"),
    ),
    Mutation(
        "prompt-gate",
        "A pipeline with a phase that needs a prompt is refused where there is none.",
        "bcs/domain/resolution.py",
        "    if prompt_attached is False and gated:\n",
        "    if False:\n",
        _in("property/test_resolution", "test_the_prompt_gate_names_each_phase_that_needs_one"),
    ),
    Mutation(
        "event-id",
        "The event id of PhaseSkipped is derived from request, batch and phase.",
        "bcs/wire/published.py",
        "event_id = str(uuid.uuid5(_NAMESPACE, identity))",
        "event_id = str(uuid.uuid4())",
        _in("unit/test_published", "test_a_repeated_request_announces_under_the_same_ids"),
    ),
)

_SUPERVISORS = (
    Mutation(
        "mailbox-bound",
        "A mailbox is bounded.",
        "bcs/supervision/mailbox.py",
        "Queue(self.capacity)",
        "Queue(math.inf)",
        _in("supervision/test_supervision_mailbox", "test_send_nowait_raises_when_the_mailbox_is_full"),
    ),
    Mutation(
        "ask-ends-with-death",
        "An ask ends with the death of the actor.",
        "bcs/supervision/mailbox.py",
        "            self._asks.fail_all(lambda: ActorDied(actor, reason))\n",
        "            del actor, reason\n",
        _in("supervision/test_supervision_ask", "test_an_ask_fails_when_the_actor_dies_and_the_next_attempt_answers"),
    ),
    Mutation(
        "redelivery",
        "An envelope that was unacked when its actor died is delivered again.",
        "bcs/supervision/mailbox.py",
        "            self._redelivery.appendleft(envelope)\n",
        "            del envelope\n",
        _in(
            "supervision/test_supervision_escalation",
            "test_the_mailbox_keeps_queued_and_unacked_envelopes_after_a_crash",
        ),
    ),
    Mutation(
        "poison-alone",
        "A message that may have caused a death comes again alone.",
        "bcs/supervision/mailbox.py",
        "        if redelivery and redelivery[0].attempts:\n",
        "        if False:\n",
        _in("supervision/test_supervision_mailbox", "test_unacked_envelopes_are_redelivered_first_and_one_at_a_time"),
    ),
    Mutation(
        "max-deliveries",
        "A message over which its actor died too often is given up, and becomes a dead letter.",
        "bcs/supervision/actor.py",
        "    if envelopes[0].attempts >= context.mailbox.max_deliveries:\n",
        "    if False:\n",
        _in(
            "supervision/test_supervision_actor",
            "test_an_envelope_delivered_too_often_is_given_up_unhandled",
        ),
    ),
    Mutation(
        "failure-cause",
        "A message is not given up for kills, which come from outside.",
        "bcs/supervision/attempt.py",
        "caused_failure = ended.abnormal and not ended.outside and (self._cancel_reason is None or self._hung)",
        "caused_failure = ended.abnormal",
        _in(
            "supervision/test_supervision_failure_cause",
            "test_only_a_hang_counts_against_envelopes_not_other_cancellations",
        ),
    ),
    Mutation(
        "watchdog",
        "A watchdog cancels an actor that hangs.",
        "bcs/supervision/attempt.py",
        "        if hang_seconds is not None:\n",
        "        if False:\n",
        _in("supervision/test_supervision_time", "test_a_hung_attempt_is_cancelled_and_restarted"),
    ),
    Mutation(
        "unhealthy",
        "An actor that ignores its cancellation is reported as such.",
        "bcs/supervision/attempt.py",
        "        if not self.unresponsive:\n",
        "        if False:\n",
        _in(
            "supervision/test_supervision_time",
            "test_an_attempt_that_ignores_cancellation_is_unresponsive_until_it_ends",
        ),
    ),
    Mutation(
        "clean-task",
        "A task in which an attempt changed a context variable runs no other attempt.",
        "bcs/supervision/workers.py",
        " and _has_changed_nothing(before)",
        "",
        _in("supervision/test_supervision_tasks", "test_a_context_variable_of_an_attempt_reaches_no_other_attempt"),
    ),
    Mutation(
        "uncancelled-task",
        "A task with a native cancellation that an attempt left behind runs no other attempt.",
        "bcs/supervision/workers.py",
        "not native_cancellations() and ",
        "",
        _in(
            "supervision/test_supervision_tasks",
            "test_a_native_cancellation_that_an_attempt_leaves_behind_harms_no_other_attempt",
        ),
    ),
    Mutation(
        "given-turn",
        "A batch that waits for a dependency takes no turn from other batches.",
        "bcs/actors/retry.py",
        "        context.give_turn()  # what this actor waits for may be a matter of its own message only\n",
        "",
        _in("integration/test_batch_actor", "test_batches_whose_dead_letters_have_no_room_hold_up_no_other_batch"),
    ),
    Mutation(
        "max-running",
        "A dynamic supervisor runs no more children at a time than it may.",
        "bcs/supervision/dynamic.py",
        "            if at_once or (self._has_room and not self._waiting):\n",
        "            if True:\n",
        _in("supervision/test_supervision_turns", "test_no_more_children_run_at_a_time_than_the_limit"),
    ),
    Mutation(
        "restart-intensity",
        "A supervisor gives up after too many restarts.",
        "bcs/supervision/intensity.py",
        "            return False\n",
        "            pass\n",
        _in("supervision/test_supervision_policy", "test_the_window_slides"),
    ),
    Mutation(
        "back-off-cap",
        "The back-off before a restart has a cap.",
        "bcs/supervision/backoff.py",
        "min(grown, self.maximum_seconds) * ",
        "grown * ",
        _in("supervision/test_supervision_policy", "test_backoff_grows_by_its_factor_up_to_the_cap"),
    ),
    Mutation(
        "back-off-reset",
        "A healthy spell makes the back-off short again.",
        "bcs/supervision/child.py",
        "            self.step = 0\n",
        "            pass\n",
        _in("supervision/test_supervision_time", "test_restart_delays_grow_and_a_healthy_period_resets_them"),
    ),
)

_INTAKE = (
    Mutation(
        "epoch",
        "A delivery token from an older ownership of a partition counts for nothing.",
        "bcs/actors/ingest/offsets.py",
        "if owned is None or owned.epoch != epoch or offset not in",
        "if owned is None or offset not in",
        _in("property/test_offset_tracker", "test_a_token_of_an_older_ownership_has_no_effect"),
    ),
    Mutation(
        "contiguous-commit",
        "An offset is committed only when nothing before it is unfinished.",
        "bcs/actors/ingest/offsets.py",
        "            ahead[offset] = written_ms\n",
        """\
            ahead[offset] = written_ms
            owned.committable = max(owned.committable or 0, offset + 1)
""",
        _in("property/test_offset_tracker", "test_finishing_everything_commits_behind_the_last_message"),
    ),
    Mutation(
        "slot-of-a-cancelled-commit",
        "A commit that is cancelled as it gets its slot leaves the slot to the next one.",
        "bcs/actors/commit_slots.py",
        "                if given.is_set():\n                    self.release()\n",
        "                if given.is_set():\n                    pass\n",
        _in("unit/test_commit_slots", "test_a_cancelled_batch_leaves_its_slot_to_the_next_one"),
    ),
    Mutation(
        "turns-of-servers",
        "A server with many waiting batches keeps those of other servers waiting for one turn only.",
        "bcs/actors/commit_slots.py",
        "if not waiting or self._given_in_turn == self._limit:",
        "if not waiting:",
        _in("unit/test_commit_slots", "test_a_server_with_many_batches_keeps_no_other_waiting"),
    ),
    Mutation(
        "signal-between-steps",
        "A signal ends a command by a cancellation, and not at any instruction.",
        "bcs/runtime/running.py",
        "with cancelling(lambda: loop.call_soon_threadsafe(task.cancel)):",
        "if task:",
        _in("unit/test_running", "test_a_signal_ends_a_command_between_two_steps_and_not_within_one"),
    ),
    Mutation(
        "flush-that-ends",
        "A flush of the index ends with what was noted before it.",
        "bcs/storage/redis/batch_index.py",
        "            left -= len(batches)\n",
        "",
        _in("integration/test_batch_index", "test_what_is_noted_during_a_flush_waits_for_the_next_one"),
    ),
    Mutation(
        "finished-behind-commit",
        "The actor of a batch reports a message as finished only behind the commit of its facts.",
        "bcs/actors/batches.py",
        """\
        try:
            await make_durable(group)
""",
        """\
        for command in group:
            if command.token:
                self.finished(MessagesAcked((command.token,)))
        try:
            await make_durable(group)
""",
        _in("integration/test_batch_actor", "test_a_message_counts_as_finished_only_after_its_commit"),
    ),
    Mutation(
        "delivered-is-not-durable",
        "A message that a batch was given does not count as finished for that.",
        "bcs/actors/ingest/delivery.py",
        """\
            await self._in_flight.deliver(ApplyFacts(event.batch_id, event.facts, token), token)
""",
        """\
            await self._in_flight.deliver(ApplyFacts(event.batch_id, event.facts, token), token)
            self._finish(token)
""",
        _in("integration/test_in_flight", "test_reading_pauses_while_too_many_messages_are_in_flight"),
    ),
    Mutation(
        "dead-letter-durable",
        "A message that can't be decoded counts as finished only once its dead letter is stored.",
        "bcs/actors/ingest/delivery.py",
        """\
            self._refused.add(DeliveryToken(message, event_type, error.correlation_id, epoch), error)
""",
        """\
            self._refused.add(DeliveryToken(message, event_type, error.correlation_id, epoch), error)
            self._finish(DeliveryToken(message, event_type, error.correlation_id, epoch))
""",
        _in("integration/test_dead_letters", "test_the_offset_of_junk_waits_until_its_dead_letter_is_stored"),
    ),
    Mutation(
        "letter-size",
        "A dead letter that would be too large for the broker is truncated before it is stored.",
        "bcs/wire/dead_letters/encode.py",
        "    if truncated is None or limit_bytes is None or failed.size_bytes <= limit_bytes:\n",
        "    if True:\n",
        _in("unit/test_letters", "test_a_large_original_is_not_copied_for_its_letter"),
    ),
    Mutation(
        "added-once",
        "An entry of a queue in Redis that comes again, because the reply was lost, is not added twice.",
        "bcs/storage/redis/queue_scripts.py",
        "not is_known(known, before, identity) then\n",
        "true then\n",
        _in("integration/test_outbox_retries", "test_an_append_is_carried_out_once"),
    ),
    Mutation(
        "announced-again",
        "An announcement that is not repeated for a time is repeated after it.",
        "bcs/storage/redis/queue_scripts.py",
        "try('SET', once, '', 'PX', once_ms)",
        "try('SET', once, '')",
        _in("integration/test_announce_once", "test_in_redis_it_is_announced_again_after_the_time"),
    ),
    Mutation(
        "invalidation-time",
        "An invalidation is later than all that it takes back.",
        "bcs/domain/invalidation.py",
        "    return max(now_us, newest_us) + 1\n",
        "    return now_us + 1\n",
        _in("property/test_invalidation", "test_the_time_is_later_than_now_and_than_all_that_is_known_of_the_phase"),
    ),
    Mutation(
        "invalidation-dry-run",
        "A dry run of an invalidation changes nothing.",
        "bcs/usecases/invalidate_phases.py",
        "if invalidation is None or command.dry_run:\n",
        "if invalidation is None:\n",
        _in("integration/test_http_invalidation", "test_a_dry_run_says_the_same_and_leaves_every_byte_as_it_is"),
    ),
    Mutation(
        "pause",
        "Reading pauses while too many messages are in flight.",
        "bcs/actors/ingest/in_flight.py",
        "            self.messages >= settings.intake_max_in_flight\n",
        "            False\n",
        _in("integration/test_in_flight", "test_reading_pauses_while_too_many_messages_are_in_flight"),
    ),
    Mutation(
        "remembered-bound",
        "Reading pauses while too many finished offsets wait behind an unfinished one.",
        "bcs/actors/ingest/delivery.py",
        "            or self._tracker.remembered >= self._runtime.settings.intake_max_in_flight * _REMEMBERED_FACTOR\n",
        "",
        _in("integration/test_in_flight", "test_finished_offsets_behind_a_stuck_message_are_limited"),
    ),
    Mutation(
        "caller-gone",
        "What a caller was told is not recorded is not recorded afterwards.",
        "bcs/actors/batches.py",
        "group = [envelope.message for envelope in envelopes if not envelope.caller_gone]",
        "group = [envelope.message for envelope in envelopes]",
        _in("integration/test_batch_actor", "test_a_report_whose_caller_is_gone_is_not_stored"),
    ),
    Mutation(
        "created-topics",
        "No client of BCS lets a broker create a topic.",
        "bcs/kafka/topic_creation.py",
        "MetadataRequest.build = _build\n",
        "",
        _in("integration/test_topic_creation", "test_to_read_or_write_a_missing_topic_does_not_create_that_topic"),
    ),
    Mutation(
        "letters-of-others",
        "A replay of all letters leaves those of other services alone.",
        "bcs/cli/dlq.py",
        "if dead_letters or service or dead_letter.is_ours\n",
        "if True\n",
        _in("integration/test_command_dlq", "test_letters_of_another_service_are_shown_and_left_alone"),
    ),
)


_REDIS = (
    Mutation(
        "shield",
        "A round trip to Redis is shielded from cancellation.",
        "bcs/storage/redis/gateway.py",
        """\
        deadline = Deadline(seconds, shield=True)
        try:
""",
        """\
        deadline = Deadline(seconds)
        try:
""",
        _in("integration/test_redis_gateway", "test_a_cancelled_round_trip_is_carried_through_on_its_connection"),
    ),
    Mutation(
        "drop-connection",
        "A connection to Redis on which anything went wrong is dropped: it may still watch keys.",
        "bcs/storage/redis/gateway.py",
        "                    if not reusable:\n",
        "                    if False:\n",
        _in("integration/test_redis_gateway", "test_a_session_that_failed_leaves_no_watch_to_the_next_one"),
    ),
    Mutation(
        "circuit-breaker",
        "After failures in a row, the circuit breaker refuses callers at once.",
        "bcs/storage/redis/gateway.py",
        "CircuitBreaker(breaker_failures,",
        "CircuitBreaker(10**9,",
        _in("integration/test_redis_circuit", "test_the_circuit_opens_refuses_at_once_half_opens_and_closes"),
    ),
    Mutation(
        "refusals",
        "What Redis refuses for a reason that an operator can mend is no corruption: nothing is buried for it.",
        "bcs/storage/redis/errors.py",
        "if isinstance(error, ResponseError) and code_of(error) in _FOR_SENDERS:",
        "if isinstance(error, ResponseError):",
        _in("integration/test_redis_refusals", "test_a_refusal_counts_as_unavailable_with_its_reason"),
    ),
    Mutation(
        "sentinel-newest",
        "Of what Sentinels say, the newest answer counts.",
        "bcs/storage/redis/sentinel.py",
        "if one.epoch == newest and not one.down]",
        "if not one.down]",
        _in("unit/test_sentinel_answers", "test_the_newest_answer_counts"),
    ),
    Mutation(
        "sentinel-minority",
        "A minority of the Sentinels does not lead back to a former master.",
        "bcs/storage/redis/sentinel.py",
        "if known and newest < known.epoch and len(named) < _majority_of(answers):",
        "if False:",
        _in("unit/test_sentinel_answers", "test_a_minority_that_is_older_than_what_is_known_changes_nothing"),
    ),
    Mutation(
        "sentinel-probe",
        "Each probe asks the Sentinels, so that a master that they name no more is left, though it answers.",
        "bcs/storage/redis/gateway.py",
        "                await self.sentinels.probe()\n",
        "                pass\n",
        _in("integration/test_redis_sentinel", "test_a_probe_leaves_a_master_that_the_sentinels_name_no_more"),
    ),
    Mutation(
        "sentinel-login",
        "Sentinels do not get the login of the data.",
        "bcs/config/store_urls.py",
        "return _without_login(text) if self._is_sentinel else text",
        "return text",
        _in("unit/test_store_urls", "test_each_server_of_a_list_has_a_url_of_its_own"),
    ),
    Mutation(
        "demoted-master",
        "A connection asks once in a second whether it still leads to the master.",
        "bcs/storage/redis/identity.py",
        "if self._check is None or now < self._asked_at + CHECK_SECONDS:",
        "if True:",
        _in("integration/test_redis_failover", "test_a_demoted_master_is_left_without_a_write"),
    ),
    Mutation(
        "watch",
        "A commit that another writer came before is not carried out (WATCH).",
        "bcs/storage/redis/batch_commands.py",
        'return [("WATCH", keys.facts, *keys.former), *reads(keys)]',
        'return [("WATCH", f"{keys.stem}:none"), *reads(keys)]',
        _in("integration/test_state_in_redis", "test_every_lost_attempt_is_counted_and_the_rival_s_facts_are_kept"),
    ),
    Mutation(
        "merge-script",
        "The script merges each register where it lies, by the same rule.",
        "bcs/storage/redis/merge_script.py",
        "if is_less(string.sub(row, before + 1, before + NUMBER), mark) then",
        "if true then",
        _in("integration/test_merge_contract", "test_every_register_keeps_what_the_law_says"),
    ),
    Mutation(
        "version-of-a-new-batch",
        "A batch that expires and comes again repeats no version.",
        "bcs/storage/redis/merge_script.py",
        "set('version', string.format('%.0f', time[1] * 1000000 + time[2]))",
        "set('version', 1)",
        _in("integration/test_merge_contract", "test_a_batch_that_comes_again_repeats_no_version"),
    ),
    Mutation(
        "renewed-by-a-commit",
        "A commit renews the batch's time to live.",
        "bcs/storage/redis/merge_script.py",
        "redis.call('PEXPIRE', key, ttl_ms)\n",
        "",
        _in("integration/test_merge_contract", "test_a_commit_counts_up_and_renews_the_time_to_live"),
    ),
    Mutation(
        "stored-summary-version",
        "A stored summary of an older version is not used.",
        "bcs/storage/redis/batch_store.py",
        "if str(summary.version).encode() != version:",
        "if False:",
        _in("integration/test_state_in_redis", "test_stores_with_different_laws_keep_a_summary_each"),
    ),
    Mutation(
        "kept-summary-version",
        "A summary that the process keeps is not used for another version.",
        "bcs/storage/redis/batch_store.py",
        "kept.redis == redis and kept.version == version",
        "kept.redis == redis",
        _in("integration/test_state_in_redis", "test_a_process_keeps_the_summary_that_it_made"),
    ),
    Mutation(
        "kept-summary-server",
        "A summary that the process keeps is not used for the same version on another server.",
        "bcs/storage/redis/batch_store.py",
        "kept.redis == redis and kept.version == version",
        "kept.version == version",
        _in("integration/test_state_in_redis", "test_a_summary_of_another_server_is_not_used"),
    ),
    Mutation(
        "summary-stored-where-made",
        "A summary is stored only on the server that it was made from.",
        "bcs/storage/redis/batch_store.py",
        "kept.redis == redis and kept.summary == summary",
        "kept.summary == summary",
        _in("integration/test_state_in_redis", "test_a_summary_is_not_stored_on_another_server"),
    ),
    Mutation(
        "fallback-has-the-limit",
        "Essays without room are refused also where a commit by a transaction falls back to the script.",
        "bcs/storage/redis/batch_store.py",
        """\
        assert reply[0] == FULL  # noqa: S101 (the script has no other reply)
""",
        """\
        if stamp == "" and self._scripts_refused_until:
            return True
""",
        _in("integration/test_state_in_redis", "test_the_fallback_of_a_transaction_refuses_essays_without_room"),
    ),
    Mutation(
        "invalidated-field",
        "The removal of a stamp touches no essay's row.",
        "bcs/storage/redis/stored_batches.py",
        '_TOUCHED = "invalidated"',
        '_TOUCHED = "touched"',
        _in("integration/test_invalidate", "test_no_essay_s_row_is_invalidated"),
    ),
    Mutation(
        "script-checks-the-stamp",
        "A commit to a batch that may lack facts of the archive backfills the batch.",
        "bcs/storage/redis/merge_script.py",
        "if stamp ~= '' and (not stored_stamp",
        "if false and (not stored_stamp",
        _in("integration/test_invalidate", "test_the_next_commit_backfills_an_invalidated_batch"),
    ),
    Mutation(
        "lost-script",
        "A script that Redis has lost is sent again.",
        "bcs/storage/redis/batch_store.py",
        "if not MERGE.is_missing(error):",
        "if True:",
        _in("integration/test_state_in_redis", "test_a_script_that_redis_has_lost_is_sent_again"),
    ),
    Mutation(
        "former-layout",
        "What the former layout holds of a batch is taken over.",
        "bcs/storage/redis/batch_store.py",
        "if self._backfill is None and not former:",
        "if self._backfill is None:",
        _in("integration/test_former_layout", "test_a_summary_takes_the_batch_over"),
    ),
    Mutation(
        "encoded-id",
        "A batch's id is percent-encoded in its keys, so that no batch has those of another.",
        "bcs/storage/redis/batch_codec.py",
        "quote(batch_id, safe='')",
        "batch_id",
        _in("integration/test_state_in_redis", "test_all_keys_of_a_batch_lie_in_one_slot_of_a_cluster"),
    ),
)

_OUTBOX = (
    Mutation(
        "outbox-acknowledged",
        "An entry of the outbox is removed only behind the broker's acknowledgement.",
        "bcs/actors/publisher.py",
        """\
        await hit(FailPoint.PUBLISHER_LEASED, context.name)
""",
        """\
        await self._persist(context, self.outbox.ack, leased)
        await hit(FailPoint.PUBLISHER_LEASED, context.name)
""",
        _in("integration/test_publisher", "test_the_next_publisher_publishes_the_entries_of_a_crashed_one"),
    ),
    Mutation(
        "outbox-resume",
        "A publisher takes up again what the one before it held when it died.",
        "bcs/actors/publisher.py",
        "            leased = await self._persist(context, self.outbox.resume, _LEASE_LIMIT)\n",
        "            leased: list[LeasedMessage] = []\n",
        _in("integration/test_publisher", "test_the_next_publisher_publishes_the_entries_of_a_crashed_one"),
    ),
    Mutation(
        "announced-first",
        "A pruning that can't be announced is not answered: its announcements are stored before the answer.",
        "bcs/usecases/resolve_pipeline.py",
        """\
            await self.announcer.announce(skipped, entry)
""",
        """\
            try:
                await self.announcer.announce(skipped, entry)
            except StoreError:
                pass
""",
        _in("integration/test_http_edges", "test_a_pruning_for_which_the_outbox_has_no_room_is_not_answered"),
    ),
    Mutation(
        "log-sums",
        "What the log says again and again is one line, and then a count a minute.",
        "bcs/observability/log_sums.py",
        "        raise structlog.DropEvent\n",
        "        return event\n",
        _in("unit/test_log_sums", "test_a_thousand_lines_of_a_kind_are_the_first_and_a_count"),
    ),
    Mutation(
        "waits-of-many",
        "What many batches wait for is said to be over when the last of them has it.",
        "bcs/observability/waits.py",
        """\
        if wait.holders:
            return
        del""",
        "        del",
        _in("unit/test_waits", "test_a_wait_of_many_ends_with_the_last_of_them"),
    ),
    Mutation(
        "outbox-takeover",
        "What a dead replica held of the outbox is taken over.",
        "bcs/actors/publisher.py",
        "                leased += await self._take_over(context)\n",
        "",
        _in(
            "integration/test_outbox_takeover",
            "test_a_dead_replica_s_entries_are_published_beside_new_entries",
        ),
    ),
    Mutation(
        "refused-is-not-acknowledged",
        "A message that the broker refused does not count as acknowledged.",
        "bcs/actors/publishing.py",
        "                sending.on_result(entry, acknowledgement.exception())\n",
        "                sending.on_result(entry, None)\n",
        _in("integration/test_publishing", "test_a_partition_without_a_leader_does_not_delay_others"),
    ),
    Mutation(
        "outbox-bound",
        "The outbox is bounded, and takes all of an append or nothing.",
        "bcs/storage/redis/stream_set.py",
        "            raise self._full_error(self._limit)\n",
        "            pass\n",
        _in("integration/test_outbox", "test_a_full_outbox_takes_all_of_an_append_or_nothing"),
    ),
    Mutation(
        "left-the-cluster",
        "A node that has left its cluster misleads nobody.",
        "bcs/storage/redis/topology.py",
        "return self.covered == SLOTS",
        "return True",
        _in("integration/test_redis_cluster", "test_a_node_that_has_left_the_cluster_misleads_nobody"),
    ),
    Mutation(
        "sent-once",
        "On a cluster, a call whose outcome is unknown is not sent again.",
        "bcs/storage/redis/slot_node.py",
        "if failure and (failure.late or not surely_not_carried_out(failure)):",
        "if failure and failure.late:",
        _in("integration/test_redis_cluster", "test_a_call_whose_outcome_is_unknown_is_not_sent_again"),
    ),
    Mutation(
        "slot-came-back",
        "A complete stamp is not valid on a slot that comes back after facts may have been lost elsewhere.",
        "bcs/storage/redis/slot_history.py",
        "if to_replica or not identity or identity != self._arrived:",
        "if False:",
        _in("unit/test_slot_history", "test_a_server_has_another_name_if_facts_may_be_lost_meanwhile"),
    ),
    Mutation(
        "server-of-a-queue-away",
        "A batch gets no complete stamp while nobody says whether its facts wait.",
        "bcs/storage/backfill.py",
        "stamp if waiting == 0 else None",
        "None if waiting else stamp",
        _in("unit/test_backfill", "test_without_the_number_of_waiting_entries_a_copy_is_backfilled_and_gets_no_stamp"),
    ),
    Mutation(
        "older-facts-wait",
        "Where a failover may have lost facts that still wait for the archive, they are waited for.",
        "bcs/storage/backfill.py",
        "if oldest_seconds and oldest_seconds",
        "if not oldest_seconds and oldest_seconds",
        _in(
            "integration/test_redis_failover",
            "test_facts_that_a_failover_lost_while_they_wait_for_the_archive_are_waited_for",
        ),
    ),
    Mutation(
        "reads-without-effect",
        "Answers without effect wait for facts from before a failover, too.",
        "bcs/storage/factory.py",
        "read_only_backfill(archive.postgres, archive.backlog)",
        "read_only_backfill(archive.postgres)",
        _in(
            "integration/test_standing_in",
            "test_answers_without_effect_wait_for_facts_from_before_a_failover_as_others_do",
        ),
    ),
    Mutation(
        "dead-letters-explain",
        "An entry about a dead letter does not count as a fact that PostgreSQL lacks.",
        "bcs/domain/history.py",
        " and bool(entry.facts)",
        "",
        _in("integration/test_archive_queue", "test_an_entry_about_a_dead_letter_does_not_count_as_a_missing_fact"),
    ),
    Mutation(
        "stream-of-a-batch",
        "The messages of a batch are in one stream, so they keep their order.",
        "bcs/storage/redis/outbox.py",
        "if message.key is None else message.key",
        "if message.value else b''",
        _in("integration/test_streams", "test_the_messages_of_a_batch_keep_their_order"),
    ),
    Mutation(
        "outbox-elsewhere",
        "While the node of a stream is away, messages for Kafka go to another node.",
        "bcs/storage/redis/outbox.py",
        "for other in self._numbers_elsewhere(number):",
        "for other in ():",
        _in("integration/test_streams", "test_messages_of_a_stream_that_is_away_go_to_another_server"),
    ),
    Mutation(
        "share-of-each-stream",
        "A full stream of the outbox does not starve the others.",
        "bcs/storage/redis/stream_set.py",
        "left // (len(streams) - position)",
        "left",
        _in("integration/test_streams", "test_a_full_stream_starves_no_other_and_uses_what_others_leave"),
    ),
    Mutation(
        "changed-later",
        "What was published of a stream that can't be used now is acked once it can.",
        "bcs/storage/redis/stream_set.py",
        "            self._due.setdefault(stream.key, []).append((change, entries[stream.key]))\n",
        "            pass\n",
        _in("integration/test_streams", "test_a_server_that_is_away_holds_up_only_its_streams"),
    ),
)

_ARCHIVE = (
    Mutation(
        "room-before-record",
        "What would give a batch too many essays is refused before the archive has it.",
        "bcs/actors/batches.py",
        "                await self._ensure_room(group[0].batch_id, delta)\n",
        "                pass\n",
        _in("integration/test_batch_actor", "test_only_events_that_exceed_the_limit_of_essays_are_refused"),
    ),
    Mutation(
        "first-problem",
        "A list of invalid ids is left at the first of them.",
        "bcs/wire/events.py",
        "NullableEssayIds = Annotated[tuple[Identifier | None, ...], Field(fail_fast=True)]",
        "NullableEssayIds = Annotated[tuple[Identifier | None, ...], Field()]",
        _in("unit/test_undecodable", "test_a_list_of_invalid_ids_is_left_at_the_first_of_them"),
    ),
    Mutation(
        "late-loop",
        "A late event loop is not a late dependency.",
        "bcs/storage/deadlines.py",
        "        return self.at > now\n\n    def left_seconds",
        "        return False\n\n    def left_seconds",
        _in("integration/test_late_loop", "test_an_answer_that_waits_for_a_busy_loop_is_in_time"),
    ),
    Mutation(
        "archive-first",
        "A fact is in the archive, or in the queue before it, before it is in Redis.",
        "bcs/actors/batches.py",
        """\
                await self.archive_client.write_durably([command.entry(now_us, span.context) for command in group])
                archived = True
            await self._commit(slot, group, delta)
""",
        """\
                await self._commit(slot, group, delta)
                await self.archive_client.write_durably([command.entry(now_us, span.context) for command in group])
                archived = True
            await self._commit(slot, group, delta)
""",
        _in("integration/test_archive_path", "test_redis_gets_no_fact_before_the_archive_has_it"),
    ),
    Mutation(
        "archive-queue",
        "While PostgreSQL is away, facts wait for it in a queue in Redis.",
        "bcs/actors/archive/writer.py",
        "        await self.archive.backlog.append(facts)\n",
        "",
        _in("integration/test_archive_queue", "test_explanations_leave_room_for_facts_during_an_outage"),
    ),
    Mutation(
        "former-queue",
        "Facts that the build before queued for PostgreSQL are drained.",
        "bcs/storage/redis/archive_queue.py",
        "self._former = [self._former_stream] if name == FACTS else []",
        "self._former = []",
        _in("integration/test_former_build", "test_a_service_starts_on_the_data_of_the_build_before"),
    ),
    Mutation(
        "former-stamp",
        "A batch that only the build before stamped as complete does not count as complete.",
        "bcs/storage/redis/former_layout.py",
        '.partition(b"/")[0])',
        ")",
        _in("integration/test_former_build", "test_a_service_starts_on_the_data_of_the_build_before"),
    ),
    Mutation(
        "former-queue-counted",
        "Facts that the build before queued count before a batch is stamped as complete.",
        "bcs/storage/redis/archive_queue.py",
        "for stream in (self._numbered_stream(0), *self._former)",
        "for stream in (self._numbered_stream(0),)",
        _in("integration/test_former_build", "test_what_waits_in_the_former_queue_counts_before_a_batch_is_stamped"),
    ),
    Mutation(
        "other-layouts-counted",
        "Facts that a process with another number of streams queued count before a batch is stamped as complete.",
        "bcs/storage/redis/archive_queue.py",
        "for layout in self._layouts.layouts]",
        "for layout in {self._layouts.layout}]",
        _in("integration/test_streams", "test_facts_are_seen_whatever_number_of_streams_another_process_has"),
    ),
    Mutation(
        "lost-layouts",
        "An append of facts ends only once others can see in which stream they wait.",
        "bcs/storage/redis/archive_queue.py",
        "        if registered is None:\n",
        "        if False:\n",
        _in("integration/test_streams", "test_layouts_that_redis_has_lost_are_written_before_a_fact_counts"),
    ),
    Mutation(
        "archive-queue-written",
        "What waits for PostgreSQL in Redis is removed only once PostgreSQL has it.",
        "bcs/actors/archive/drain.py",
        """\
        try:
            entries = [entry.message for entry in portion]
""",
        """\
        await queue.ack(portion)
        try:
            entries = [entry.message for entry in portion]
""",
        _in("integration/test_archive_queue", "test_queued_entries_stay_until_the_archive_has_them"),
    ),
    Mutation(
        "drain-halves",
        "Of what PostgreSQL does not take in time, half is tried.",
        "bcs/actors/archive/drain.py",
        "                self._amount.was_too_much(sum(map(_weight_of, portion)))\n",
        "                pass\n",
        _in("integration/test_archive_drain", "test_a_backlog_too_large_for_one_statement_is_drained_in_parts"),
    ),
    Mutation(
        "archive-law",
        "A mark in PostgreSQL is replaced only by a newer one.",
        "bcs/storage/postgres/sql.py",
        """\
        SET outcome = excluded.outcome, at_us = excluded.at_us
        WHERE (excluded.at_us, excluded.outcome) > (known.at_us, known.outcome)
""",
        """\
        SET outcome = excluded.outcome, at_us = excluded.at_us
""",
        _in("integration/test_archive_store", "test_the_archive_merges_like_the_model"),
    ),
    Mutation(
        "stall-alone",
        "What can't be read ends its own partition, and not the poll of all.",
        "bcs/kafka/records.py",
        "            raise StopIteration from None\n",
        "            raise\n",
        _in("unit/test_tolerant_records", "test_reading_ends_in_front_of_a_batch_that_cannot_be_read"),
    ),
    Mutation(
        "unreadable-is-not-passed",
        "A partition that can't be read is not read on behind what can't be read.",
        "bcs/kafka/records.py",
        '            self._failed(self._tp, self.next_fetch_offset, getattr(error, "last_offset", None), error)\n',
        "            self.next_fetch_offset += 1\n",
        _in("unit/test_tolerant_records", "test_reading_ends_in_front_of_a_batch_that_cannot_be_read"),
    ),
    Mutation(
        "skip-as-a-letter",
        "What an operator passes over becomes a dead letter.",
        "bcs/actors/ingest/reading.py",
        "        self.skip_orders.refuse_ordered(message, event.batch_id, event.correlation_id)\n",
        "",
        _in("integration/test_skips", "test_a_message_with_a_skip_order_becomes_a_dead_letter"),
    ),
    Mutation(
        "index-scans",
        "PostgreSQL reads no table from beginning to end, however unevenly the rows are spread over the batches.",
        "bcs/storage/postgres/connecting.py",
        '"enable_seqscan": "off", ',
        "",
        _in("integration/test_archive_plans", "test_every_statement_uses_an_index_for_any_spread_of_rows"),
    ),
    Mutation(
        "usable-database",
        "A database whose encoding is not UTF8 counts as away: no fact is impossible for it.",
        "bcs/storage/postgres/connecting.py",
        "            ensure_usable(connection.get_server_version().major, settings.server_encoding)\n",
        "",
        _in("integration/test_archive_unusable", "test_an_encoding_other_than_utf8_is_named_and_nothing_is_written"),
    ),
    Mutation(
        "history-once",
        "An entry of the history that comes again is kept once.",
        "bcs/storage/postgres/sql.py",
        "ORDER BY place\nON CONFLICT (batch_key, entry_id) DO NOTHING\n",
        "ORDER BY place\n",
        _in("integration/test_archive_store", "test_a_repeated_entry_is_stored_once"),
    ),
    Mutation(
        "history-id",
        "The id of a message's entry comes from its place in Kafka, so that it is the same however often it is read.",
        "bcs/actors/messages.py",
        "        consumed_entry_id(message.topic, message.partition, message.offset, message.timestamp_ms),\n",
        "        __import__('uuid').uuid4(),\n",
        _in("unit/test_rebuilder", "test_the_same_message_has_the_same_entry_each_time"),
    ),
    Mutation(
        "refused-entry-alone",
        "An entry that PostgreSQL refuses spoils no other.",
        "bcs/actors/isolate.py",
        """\
        if len(items) == 1:
            await on_refused(items[0], error)
            return
""",
        """\
        if True:
            for item in items:
                await on_refused(item, error)
            return
""",
        _in("integration/test_archive_path", "test_an_entry_that_the_archive_refuses_does_not_affect_others"),
    ),
    Mutation(
        "run-id",
        "What an earlier run of Redis was stamped complete in is not trusted after a restart.",
        "bcs/storage/backfill.py",
        "required is not None and stamp.startswith(required)",
        'required is not None and stamp.endswith(required.partition("/")[2])',
        _in("integration/test_rolled_back", "test_a_redis_that_lost_its_last_seconds_is_backfilled"),
    ),
    Mutation(
        "left-server",
        "What was stamped complete in a Redis is not trusted once another one was in its place.",
        "bcs/storage/redis/identity.py",
        'f"{reported}-{self._new_token()}" if reported in self._former else reported',
        "reported",
        _in("integration/test_redis_failover", "test_a_server_that_was_left_is_not_trusted_when_it_is_back"),
    ),
    Mutation(
        "unknown-identity",
        "While PostgreSQL is away, a Redis that does not tell its identity answers for no batch.",
        "bcs/storage/backfill.py",
        "        if not redis:\n",
        "        if False:\n",
        _in("integration/test_rolled_back", "test_a_redis_without_an_identity_is_never_trusted"),
    ),
    Mutation(
        "making-id",
        "What was stamped complete with other tables in PostgreSQL is not trusted.",
        "bcs/storage/backfill.py",
        "required is not None and stamp.startswith(required)",
        'required is not None and stamp.startswith(required.partition("/")[0] + "/")',
        _in("integration/test_rolled_back", "test_a_new_archive_gets_the_facts_that_redis_has"),
    ),
    Mutation(
        "same-run",
        "While PostgreSQL is away, a restarted Redis answers for no batch that it may know only in part.",
        "bcs/storage/backfill.py",
        """\
        if stamp is not None and stamp.partition("/")[0] != redis:
            raise StoreUnavailable(""",
        """\
        if False:
            raise StoreUnavailable(""",
        _in(
            "integration/test_rolled_back",
            "test_a_redis_that_lost_data_gives_no_answers_without_the_archive",
        ),
    ),
    Mutation(
        "stamp-while-waiting",
        "A batch is not stamped complete while facts wait for PostgreSQL.",
        "bcs/storage/backfill.py",
        "stamp if waiting == 0 else None",
        "stamp",
        _in("integration/test_invalidate", "test_nothing_is_taken_for_complete_while_facts_wait_for_the_record"),
    ),
    Mutation(
        "invalidated-writer",
        "A commit fails when the archive got facts past Redis since it was read.",
        "bcs/storage/redis/stored_batches.py",
        '                    ("HSET", keys.facts, _TOUCHED, 1),\n',
        "",
        _in("integration/test_invalidate", "test_a_writer_that_read_the_archive_before_reads_it_again"),
    ),
    Mutation(
        "partial-batch",
        "While PostgreSQL is away, a batch whose registration is unknown gets no answer.",
        "bcs/storage/backfill.py",
        "        if not registered:\n",
        "        if False:\n",
        _in(
            "integration/test_partial_knowledge", "test_one_essay_that_came_after_redis_forgot_thirty_completes_nothing"
        ),
    ),
    Mutation(
        "partial-record",
        "While Redis is away, PostgreSQL answers for no batch whose registration it does not have.",
        "bcs/usecases/batch_reader.py",
        "    if state.expected is None:\n",
        "    if False:\n",
        _in("integration/test_standing_in", "test_a_batch_without_an_archived_registration_gets_no_answer"),
    ),
    Mutation(
        "facts-wait",
        "While Redis is away, PostgreSQL does not answer when facts wait for it in Redis.",
        "bcs/storage/archive.py",
        " and self._nothing_waits",
        "",
        _in("integration/test_standing_in", "test_a_drained_backlog_counts_as_empty"),
    ),
)

_EXPLAINED = "integration/test_explain_archive"
_HTTP = (
    Mutation(
        "no-guess",
        "When the store is out of reach, the answer is 503 and not a guess.",
        "bcs/usecases/batch_reader.py",
        """\
            state = await _state_in(self.archive, batch_id, error)
            return await paced(summarizing(state, law, 0)), POSTGRESQL
""",
        """\
            return BatchSummary(), self.store_name
""",
        _in("integration/test_http_edges", "test_what_is_refused_for_an_outage_names_no_address"),
    ),
    Mutation(
        "one-set-of-rules",
        "A request is answered by the definitions that were in use when it began.",
        "bcs/usecases/resolve_pipeline.py",
        "resolution = _decide(rules, command, summary)",
        "resolution = _decide(self.definitions.current, command, summary)",
        _in("integration/test_reload", "test_under_load_no_request_sees_a_mixture_and_nothing_leaks"),
    ),
    Mutation(
        "law-of-the-request",
        "A summary is made under the law of the definitions that answer the request.",
        "bcs/usecases/resolve_pipeline.py",
        "self.reader.summary(command.batch_id, rules.law)",
        "self.reader.summary(command.batch_id)",
        _in("integration/test_reload", "test_under_load_no_request_sees_a_mixture_and_nothing_leaks"),
    ),
    Mutation(
        "one-series-of-definitions",
        "The metric names only the definitions in use.",
        "bcs/usecases/active_definitions.py",
        "        info.clear()\n",
        "",
        _in("integration/test_reload", "test_a_valid_file_is_used_from_now_on"),
    ),
    Mutation(
        "readiness",
        "Readiness is off while the service stops.",
        "bcs/http/routes/health.py",
        "        if self.draining():\n",
        "        if False:\n",
        _in("integration/test_stopping", "test_while_it_drains_it_says_so_and_still_answers"),
    ),
    Mutation(
        "redis-answer-age",
        "Readiness does not trust an old answer of Redis.",
        "bcs/actors/redis_probe.py",
        "        if age_seconds > self.max_age_seconds:\n",
        "        if False:\n",
        _in("unit/test_redis_status", "test_an_old_answer_of_redis_does_not_count"),
    ),
    Mutation(
        "deadline",
        "A request that takes too long is ended with a 503.",
        "bcs/http/deadlines.py",
        "lambda task, _: task.cancel()",
        "lambda task, _: None",
        _in(
            "integration/test_http_deadlines",
            "test_a_late_request_is_answered_with_503_on_the_same_connection",
        ),
    ),
    Mutation(
        "body-limit",
        "A request body that is too large is refused.",
        "bcs/http/bodies.py",
        "if reading.held_bytes > self._most_bytes:",
        "if False:",
        _in("integration/test_http_api", "test_a_body_beyond_one_mebibyte_is_too_large"),
    ),
    Mutation(
        "overload",
        "Beyond a number of requests at a time, more are refused at once.",
        "bcs/http/guard.py",
        "if self._concurrent >= self._settings.http_max_concurrent_requests and request.path not in _PROBES:",
        "if False:",
        _in("integration/test_http_load", "test_beyond_the_limit_requests_are_refused_at_once_and_probes_are_not"),
    ),
    Mutation(
        "slow-bodies",
        "A request takes a place only once its body has come.",
        "bcs/http/guard.py",
        "if self._concurrent >= self",
        "if self._in_flight > self",
        _in("integration/test_http_slow_callers", "test_bodies_that_never_end_take_no_place_from_quick_callers"),
    ),
    Mutation(
        "batch-pages",
        "An answer about a batch names no more essays than were asked for.",
        "bcs/http/documents.py",
        "listed = list(islice(following, self.limit))",
        "listed = list(following)",
        _in(
            "integration/test_http_batch_pages",
            "test_all_pages_together_have_each_essay_once_and_all_that_hold_back",
        ),
    ),
    Mutation(
        "early-bytes",
        "The bytes of a body do not count as bytes of a request that comes too early.",
        "bcs/http/connection.py",
        "        elif completes_body:\n",
        "        elif False:\n",
        _in("integration/test_http_at_once", "test_a_large_body_may_arrive_before_its_request_is_begun"),
    ),
    Mutation(
        "slow-readers",
        "A caller that does not take its answer in time is dropped.",
        "bcs/http/connection.py",
        "        self._callers.sendings.watch(self)\n",
        "        pass\n",
        _in(
            "integration/test_http_batch_pages",
            "test_a_caller_that_takes_no_answer_is_dropped_with_its_memory",
        ),
    ),
    Mutation(
        "kept-files",
        "Where the process has used up its files, connections are accepted with those that were kept.",
        "bcs/http/acceptor.py",
        "if not self._reserve.give_up():",
        "if True:",
        _in("integration/test_acceptor", "test_without_files_connections_are_accepted_by_those_that_were_kept"),
    ),
    Mutation(
        "late-bodies",
        "A body that does not come in time is refused.",
        "bcs/http/bodies.py",
        "            self._awaited.watch(reading)\n",
        "            pass\n",
        _in(
            "integration/test_http_slow_callers", "test_a_body_that_comes_late_gets_a_408_and_its_connection_is_closed"
        ),
    ),
    Mutation(
        "rate",
        "A caller that has used up its rate is refused.",
        "bcs/http/guard.py",
        "            raise too_many_requests(wait_seconds)\n",
        "            pass\n",
        _in("integration/test_http_limits", "test_a_caller_beyond_its_rate_gets_a_429_and_probes_are_not_counted"),
    ),
    Mutation(
        "quota-of-questions",
        "A question about an unknown batch uses the caller's quota.",
        "bcs/usecases/resolve_pipeline.py",
        "            if unknown:\n",
        "            if False:\n",
        _in(
            "integration/test_http_limits",
            "test_beyond_the_quota_unknown_batches_leave_nothing_and_known_ones_are_answered",
        ),
    ),
    Mutation(
        "quota-of-reports",
        "A report about an unknown batch uses the caller's quota.",
        "bcs/usecases/report_phase.py",
        "        if state.empty:\n",
        "        if False:\n",
        _in(
            "integration/test_http_limits",
            "test_beyond_the_quota_unknown_batches_leave_nothing_and_known_ones_are_answered",
        ),
    ),
    Mutation(
        "quota-of-known-batches",
        "A known batch uses no quota.",
        "bcs/usecases/resolve_pipeline.py",
        "            if unknown:\n",
        "            if True:\n",
        _in(
            "integration/test_http_limits",
            "test_beyond_the_quota_unknown_batches_leave_nothing_and_known_ones_are_answered",
        ),
    ),
    Mutation(
        "bounded-buckets",
        "The number of token buckets is bounded.",
        "bcs/domain/token_buckets.py",
        "now and len(buckets) < self._most):",
        "now):",
        _in("unit/test_token_buckets", "test_a_crowd_of_callers_takes_bounded_memory_and_refuses_nobody"),
    ),
    Mutation(
        "share-of-address",
        "An address has no more than its share of the connections.",
        "bcs/http/callers.py",
        "        if most is None or (count",
        "        if True or (count",
        _in(
            "integration/test_http_limits",
            "test_an_address_has_a_share_of_the_connections_and_gives_up_its_own_first",
        ),
    ),
    Mutation(
        "active-callers",
        "Where room is needed, a connection that was used a moment ago is not the first to go.",
        "bcs/http/callers.py",
        "        slow = (self.idle, self.heads",
        "        if self.idle:\n            return self.idle\n        slow = (self.idle, self.heads",
        _in(
            "integration/test_http_attacks",
            "test_good_callers_keep_their_connections_while_silent_ones_use_up_the_files",
        ),
    ),
    Mutation(
        "targets-without-path",
        "A request whose target is no path gets a problem document.",
        "bcs/http/connection.py",
        "        if isinstance(resp, web.HTTPException):\n",
        "        if False:\n",
        _in(
            "integration/test_http_callers",
            "test_a_request_that_is_broken_gets_a_problem_that_repeats_nothing",
        ),
    ),
    Mutation(
        "chaos-door",
        "Actors can be killed over HTTP only where that is enabled.",
        "bcs/http/routes/actors.py",
        "        if not self.chaos_enabled:\n",
        "        if False:\n",
        _in("integration/test_chaos_door", "test_the_door_is_closed_unless_it_is_opened"),
    ),
    Mutation(
        "dry-run",
        "A dry run announces nothing and stores nothing.",
        "bcs/usecases/resolve_pipeline.py",
        "        if not command.dry_run:\n            if unknown:\n",
        "        if True:\n            if unknown:\n",
        _in(_EXPLAINED, "test_a_dry_run_leaves_every_store_byte_by_byte_as_it_is"),
    ),
    Mutation(
        "needed-phases",
        "A request can't leave out a phase that is not complete and that another phase needs.",
        "bcs/domain/resolution.py",
        "        if by:\n            progress",
        "        if False:\n            progress",
        _in("property/test_resolve_options", "test_a_refusal_says_what_is_needed_by_whom_and_why_it_is_not_complete"),
    ),
    Mutation(
        "intake-behind",
        "While events have waited longer than allowed, no question is answered.",
        "bcs/usecases/resolve_pipeline.py",
        "if lag.seconds is None or lag.seconds > most_seconds:",
        "if lag.seconds is not None and lag.seconds > 2 * most_seconds:",
        _in("integration/test_explain", "test_an_answer_is_refused_while_the_intake_is_too_far_behind"),
    ),
)

_PAGE = (
    Mutation(
        "page-policy",
        "The page runs no script but its own files.",
        "bcs/http/page_files.py",
        "script-src 'self'; style-src 'self'; img-src 'self'; connect-src",
        "style-src 'self'; img-src 'self'; connect-src",
        _in("integration/test_ui", "test_the_page_is_public_and_may_run_nothing_but_its_own_files"),
    ),
    Mutation(
        "page-token-removed",
        "A stream ends when the token of its caller is removed.",
        "bcs/http/live_feed.py",
        " and self._admitted():",
        ":",
        _in("integration/test_ui", "test_a_removed_token_ends_its_streams"),
    ),
    Mutation(
        "page-streams",
        "Only so many streams are open at a time.",
        "bcs/http/live_feed.py",
        "return self._open >= self._most",
        "return False",
        _in(
            "integration/test_ui",
            "test_only_so_many_streams_are_open_and_a_closed_one_makes_room",
        ),
    ),
    Mutation(
        "page-stop",
        "A stop ends all streams at once, and does not wait for them.",
        "bcs/http/server.py",
        "                    self.feed.end()  # the pages",
        "                    pass  # the pages",
        _in("integration/test_ui", "test_a_stop_and_a_kill_of_the_http_actor_end_the_streams_at_once"),
    ),
    Mutation(
        "page-listed",
        "Of thousands of actors few are listed.",
        "bcs/http/live_documents.py",
        "return troubled[:_MOST_LISTED]",
        "return troubled",
        _in("unit/test_live_feed", "test_of_thousands_of_actors_ten_that_are_in_trouble_are_listed"),
    ),
    Mutation(
        "dead-letters-replayed-once",
        "A dead letter is not replayed twice, unless that is wanted.",
        "bcs/ops/dlq/desk.py",
        "wanted = waiting if again else waiting - index.replayed",
        "wanted = waiting",
        _in("integration/test_http_dead_letters", "test_a_failed_resolution_is_answered_again"),
    ),
)

_SECRETS = (
    Mutation(
        "rotated-redis-login",
        "A new connection to Redis uses the login that is in the files then.",
        "bcs/storage/redis/connecting.py",
        "dict(parse_url(self.url.current()))\n        user",
        "self.__dict__.setdefault('kept', dict(parse_url(self.url.current())))\n        user",
        _in("integration/test_secured_stores", _ROTATION),
    ),
    Mutation(
        "rotated-postgresql-login",
        "A new connection to PostgreSQL uses the login that is in the files then.",
        "bcs/storage/postgres/connecting.py",
        "        url, address = self._url.current(), ",
        "        url, address = self.__dict__.setdefault('kept', self._url.current()), ",
        _in("integration/test_secured_stores", _ROTATION),
    ),
    Mutation(
        "refused-login-waits",
        "A refused login waits, and a new password is tried at once.",
        "bcs/config/refused_logins.py",
        "if refusal and refusal.secret",
        "if refusal and not refusal.secret",
        _in("integration/test_secured_stores", "test_postgresql_is_not_asked_with_a_refused_password_again_at_once"),
    ),
    Mutation(
        "closed-tls",
        "A closed connection to Kafka waits for no farewell.",
        "bcs/kafka/connecting.py",
        "            transport.abort()",
        "            transport.close()",
        _in("integration/test_closed_tls", "test_a_closed_client_of_kafka_leaves_no_connection"),
    ),
    Mutation(
        "other-server",
        "A URL that changes does not lead to another server.",
        "bcs/config/store_urls.py",
        "_place(text) == self._place else",
        "True else",
        _in("unit/test_store_urls", "test_a_changed_url_that_can_t_be_used_leaves_the_one_before_and_is_logged_once"),
    ),
    Mutation(
        "user-in-cause",
        "The cause of a refused login does not name the user.",
        "bcs/config/store_urls.py",
        'f"this {kind}"',
        "f'{kind} \"{unquote(user)}\"'",
        _in("integration/test_no_secret_is_shown", "test_no_setting_and_no_store_shows_a_secret"),
    ),
)

_TOKENS, _CERTIFICATES = "integration/test_caller_tokens", "integration/test_caller_certificates"
_CALLERS = (
    Mutation(
        "known-callers",
        "Where callers have to be known, a request without a token gets no answer but a 401.",
        "bcs/http/guard.py",
        "            if admit is not None:\n",
        "            if False:\n",
        _in(_TOKENS, "test_without_a_token_every_path_but_the_probes_is_401"),
    ),
    Mutation(
        "scopes",
        "A caller does only what its scopes allow.",
        "bcs/http/access.py",
        "if scope is not None and scope not in identity.scopes:",
        "if False:",
        _in(_TOKENS, "test_each_route_needs_its_scope_and_no_other"),
    ),
    Mutation(
        "one-token",
        "A request with two tokens is refused, whichever comes first.",
        "bcs/http/access.py",
        "if len(headers) > 1 or scheme",
        "if scheme",
        _in(_TOKENS, "test_a_header_without_one_known_token_is_401"),
    ),
    Mutation(
        "expected-bodies",
        "A caller who is refused is not asked for its body.",
        "bcs/http/server.py",
        " or not (public or guard.admits(scope, request)):",
        ":",
        _in(_TOKENS, "test_the_body_of_a_caller_who_may_not_is_not_asked_for"),
    ),
    Mutation(
        "token-before-certificate",
        "A wrong token is refused, whatever the certificate.",
        "bcs/http/access.py",
        "identity = self._by_token(headers) if headers else self._by_certificate(request)",
        "identity = (self._by_token(headers) if headers else None) or self._by_certificate(request)",
        _in(_CERTIFICATES, "test_a_token_counts_more_than_the_certificate"),
    ),
    Mutation(
        "client-certificates",
        "Where client certificates are asked for, a connection without one ends.",
        "bcs/http/tls.py",
        "context.verify_mode = ssl.CERT_REQUIRED",
        "context.verify_mode = ssl.CERT_OPTIONAL",
        _in(_CERTIFICATES, "test_who_has_no_valid_certificate_gets_no_connection"),
    ),
    Mutation(
        "slow-readers-over-tls",
        "A caller over TLS that does not take its answer in time is dropped, too.",
        "bcs/http/tls.py",
        "        self._protocol.pause_writing()\n",
        "        pass\n",
        _in(_CERTIFICATES, "test_who_does_not_read_an_answer_over_tls_is_dropped"),
    ),
)

_FINDING = (
    Mutation(
        "found-again",
        "A batch that changes while the pages are read is found at their end.",
        "bcs/usecases/find_batches.py",
        '                if first or cursor is None or direction == "on" or _ended(criteria, began_us):\n',
        "                if True:\n",
        _in("property/test_found_batches", "test_each_batch_that_stays_is_on_a_page"),
    ),
    Mutation(
        "only-asked-for",
        "To ask about a batch is no change of it.",
        "bcs/storage/postgres/rows.py",
        "        [not deltas[batch_id].empty for batch_id in batch_ids],\n",
        "        [True for batch_id in batch_ids],\n",
        _in("integration/test_find_batches", "test_a_question_about_a_batch_is_no_change"),
    ),
)

MUTATIONS: tuple[Mutation, ...] = (
    *_DOMAIN,
    *_SUPERVISORS,
    *_INTAKE,
    *_REDIS,
    *_OUTBOX,
    *_ARCHIVE,
    *_FINDING,
    *_HTTP,
    *_PAGE,
    *_SECRETS,
    *_CALLERS,
)
