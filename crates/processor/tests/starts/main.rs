//! Programs started from packages, by the real daemon and clients that are processes of their own.
//!
//! This file is its own harness, because a client must have a single thread: called with `--client` it is one. Otherwise it runs
//! the tests whose names contain the first argument that is no option.

mod cached;
#[expect(dead_code, reason = "the other test binary uses the rest")]
#[path = "../claims/client.rs"]
mod client;
mod own_user;
mod starting;
mod user_of_its_own;
#[expect(dead_code, reason = "the other test binary uses the rest")]
#[path = "../claims/world.rs"]
mod world;

use std::panic::catch_unwind;
use std::process::ExitCode;

macro_rules! tests {
    ($($module:ident :: $name:ident),+ $(,)?) => {
        const TESTS: &[(&str, fn())] = &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),+];
    };
}

tests! {
    own_user::a_package_behaves_as_its_plain_program,
    own_user::without_the_processor_not_one_sealed_byte_runs,
    own_user::twenty_starts_of_one_build_at_once_all_succeed,
    own_user::an_altered_package_or_another_processors_is_refused_before_exec,
    own_user::another_file_in_place_of_the_verified_one_ends_with_126,
    own_user::loader_variables_are_gone_or_stay_as_the_vendor_wants,
    own_user::a_version_that_its_vendor_withdrew_is_refused_although_it_was_opened_before,
    own_user::data_is_not_run_and_programs_are_not_opened_to_files,
    own_user::a_client_in_another_mount_or_user_namespace_is_refused,
    own_user::a_client_that_does_not_exec_in_time_is_let_go,
    cached::copies_and_orders_of_one_build_are_verified_each_and_opened_once,
    cached::the_least_recently_used_build_goes_first_and_bytes_are_bounded,
    cached::eviction_forgetting_and_the_daemons_end_disturb_no_running_program,
    cached::what_the_operator_has_forgotten_is_opened_anew,
    cached::a_build_that_a_later_manifest_withdraws_is_dropped_at_once_and_runs_on_where_it_runs,
    user_of_its_own::a_processor_with_its_own_user_serves_others_and_keeps_from_them_what_they_run,
    user_of_its_own::another_users_program_has_its_data_and_that_user_has_it_not,
    user_of_its_own::a_duplicate_of_the_clients_socket_gets_no_page_and_no_descriptor,
    user_of_its_own::without_cap_sys_ptrace_another_users_start_is_refused_by_name,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "--client") {
        return starting::client(&arguments[1..]);
    }
    if arguments.first().is_some_and(|a| a == "--spy") {
        return starting::spy();
    }
    let filter = arguments.iter().find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let exact = arguments.iter().any(|a| a == "--exact");
    let chosen = TESTS.iter().filter(|(name, _)| if exact { *name == filter } else { name.contains(&filter) });
    if arguments.iter().any(|a| a == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, test) in chosen {
        let outcome = catch_unwind(test);
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failed += u8::from(outcome.is_err());
    }
    println!("test result: {failed} failed");
    ExitCode::from(failed)
}
