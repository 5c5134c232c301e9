//! Client library of `mrmd`.
