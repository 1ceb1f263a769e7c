"""One sweep: what was asked (spec) -> cells (plan) -> devices (fleet) -> attempts (journal) -> tables -> report."""
