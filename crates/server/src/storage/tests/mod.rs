//! One suite, run on both engines.

mod bought;
mod dump;
mod fixture;
mod forms;
mod log;
mod money;
mod orders;
mod payments;
mod pipeline;
mod rest;
mod walks;

use fixture::Fixture;

/// Runs each claim on each engine.
macro_rules! tests {
    ($($file:ident::$claim:ident,)+) => {
        mod sqlite {
            use super::*;
            $(#[tokio::test]
            async fn $claim() {
                $file::$claim(Fixture::on_sqlite().await).await;
            })+
        }
        mod postgres {
            use super::*;
            $(#[tokio::test]
            async fn $claim() {
                $file::$claim(Fixture::on_postgres().await).await;
            })+
        }
    };
}

tests! {
    orders::an_order_is_held_once_and_captured_once,
    orders::parallel_settlements_charge_once_and_answer_alike,
    orders::a_settlement_cut_off_between_any_two_statements_changes_nothing,
    orders::a_receipt_that_cannot_be_signed_captures_nothing,
    orders::a_transaction_that_panics_changes_nothing_and_holds_nobody_up,
    orders::a_settlement_needs_a_hold_the_owner_and_a_seal_of_this_order,
    orders::an_order_that_runs_out_gives_the_money_back,
    orders::a_late_acknowledgement_is_held_once_more_or_refused_by_name,
    orders::what_was_not_sealed_is_cancelled_and_what_was_is_not,
    orders::a_cancel_and_a_delivery_at_once_end_in_one_of_two_ways_and_whoever_lost_hears_which,
    orders::what_was_left_between_acknowledgement_and_capture_is_driven_on,
    orders::a_batch_settles_all_of_its_orders_or_none,
    walks::orders_walk_as_a_small_model_says,
    money::a_price_is_divided_refunded_and_paid_out,
    money::an_instruction_is_carried_out_once_and_answered_the_same_for_ever,
    money::instructions_given_at_once_under_one_key_are_one,
    money::a_statement_says_what_happened_in_its_time,
    money::each_seller_counts_receipts_from_one_without_a_gap,
    orders::money_that_is_not_there_is_not_held,
    orders::agreeing_to_another_confirmation_holds_nothing,
    orders::an_idempotency_key_names_one_order,
    orders::orders_placed_at_once_under_one_key_are_one,
    bought::what_was_bought_for_a_processor_is_ordered_again_only_by_those_who_want_it_again,
    orders::a_ticket_that_is_shown_many_times_at_once_admits_one,
    orders::a_foreign_order_is_as_if_it_were_not_there,
    orders::a_ticket_admits_once_in_time_and_its_owner_only,
    orders::a_settled_order_is_delivered_again_for_its_receipt_only,
    log::every_receipt_is_entered_in_the_log_and_proven_the_same_each_time,
    log::the_log_only_grows,
    payments::a_card_is_asked_under_one_attempt_until_it_is_declined,
    payments::what_a_card_holds_is_captured_only_when_it_was_taken_and_goes_back_to_the_card,
    payments::what_a_card_holds_for_an_order_that_came_to_nothing_is_let_go_although_nobody_agreed,
    pipeline::a_failure_among_changes_nobody_looks_at_undoes_all_of_them_and_is_the_one_that_is_named,
    pipeline::a_change_nobody_looked_at_is_seen_by_the_query_that_follows_and_gone_with_a_refusal,
    pipeline::more_changes_than_are_kept_back_at_once_happen_together_or_not_at_all,
    pipeline::a_statement_that_ends_its_transaction_does_so_with_all_before_it_or_changes_nothing,
    pipeline::nothing_is_written_outside_of_a_transaction,
    pipeline::servers_that_run_while_a_newer_version_makes_a_table_wider_go_on,
    rest::a_release_is_new_and_its_sequence_rises,
    rest::two_uploads_of_one_version_publish_it_once,
    rest::a_version_that_is_announced_anew_is_published_by_its_newest_announcement,
    rest::a_common_package_is_made_once,
    rest::a_parcel_is_kept_for_its_terms_until_it_is_forgotten_replaced_late_or_without_room,
    rest::an_order_moves_to_another_processor_once_and_never_back,
    rest::the_ledger_only_grows_and_takes_no_entry_that_does_not_balance,
    rest::a_database_of_a_newer_version_is_refused_and_left_as_it_is,
    rest::what_was_settled_is_there_after_a_restart,
    rest::a_session_ends_by_time_by_log_out_and_by_newer_ones,
    rest::a_session_outlives_a_clock_that_was_a_year_ahead,
    dump::a_backup_holds_every_column_of_every_table_but_those_left_out_by_name,
    dump::a_backup_becomes_the_same_books_on_the_other_engine_and_these_go_on,
    rest::who_agrees_to_nothing_and_uploads_nothing_is_stopped_at_a_limit,
}
