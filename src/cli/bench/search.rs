//! The highest rate without loss, or with little: a search as RFC 2544 26.1 has it, with loss ratios and the judging of
//! each rate by several trials as RFC 9971 has them (exceed ratio 1/2: most of a rate's trials must pass).

/// What came of one trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offered {
    /// The rate at which packets were really offered.
    pub rate: f64,
    /// Share of them that was lost.
    pub loss: f64,
}

/// Trials of which a rate must pass most.
const TRIALS: usize = 3;

/// How to search.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// Rates that are tried at most.
    pub steps: usize,
    /// The search ends when the least rate that fails is so much above the highest that passes, as a share.
    pub width: f64,
}

impl Default for Search {
    fn default() -> Self {
        Self { steps: 12, width: 0.005 }
    }
}

impl Search {
    /// The highest rate offered of which most trials lost no more than a share of `most`. `maximum` is about the rate
    /// that comes through when more is offered, and `passed` one that is known to pass (0: none). The result is 0 when
    /// no rate passed.
    ///
    /// # Errors
    /// Those of `trial`, which offers packets at a rate.
    pub fn highest<E>(
        &self,
        maximum: f64,
        passed: f64,
        most: f64,
        mut trial: impl FnMut(f64) -> Result<Offered, E>,
    ) -> Result<f64, E> {
        let (mut low, mut high, mut reached) = (passed, 1.1 * maximum, passed);
        for step in 0..self.steps {
            if high - low < self.width * high {
                break;
            }
            // Most often it is close to what comes through at most.
            let near = 0.9 * maximum;
            let rate = if step == 0 && near > low { near } else { f64::midpoint(low, high) };
            match passes(rate, most, &mut trial)? {
                Some(offered) => (low, reached) = (rate, reached.max(offered)),
                None => high = rate,
            }
        }
        Ok(reached)
    }
}

/// The least rate that was offered in the trials that passed, if most did.
fn passes<E>(
    rate: f64,
    most: f64,
    trial: &mut impl FnMut(f64) -> Result<Offered, E>,
) -> Result<Option<f64>, E> {
    let (mut good, mut bad, mut least) = (0, 0, f64::INFINITY);
    while 2 * good <= TRIALS && 2 * bad <= TRIALS {
        let offered = trial(rate)?;
        if offered.loss <= most {
            good += 1;
            least = least.min(offered.rate);
        } else {
            bad += 1;
        }
    }
    Ok((good > bad).then_some(least))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Something that carries so much, and loses what is more.
    fn carries(limit: f64) -> impl FnMut(f64) -> Result<Offered, Infallible> {
        move |rate| Ok(Offered { rate, loss: (1.0 - limit / rate).max(0.0) })
    }

    #[test]
    fn what_is_carried_is_found_wherever_it_is() {
        for limit in [0.1, 2.0, 5.0, 8.9, 9.1, 10.0] {
            let found = Search::default().highest(10.0, 0.0, 0.0, carries(limit)).unwrap();
            assert!(found <= limit && found > limit - 0.06, "{limit}: {found}");
        }
    }

    #[test]
    fn some_loss_allows_a_higher_rate_and_starts_from_what_passed_without() {
        let mut rates = Vec::new();
        let found = Search::default().highest(10.0, 9.8, 0.1, |rate| {
            rates.push(rate);
            carries(9.8)(rate)
        });
        let found = found.unwrap();
        assert!(found > 10.8 && found < 10.9, "{found}");
        assert!(rates.iter().all(|rate| *rate > 9.8));
    }

    #[test]
    fn one_bad_trial_of_three_is_forgiven_and_two_are_not() {
        for (every, found) in [(3, true), (2, true), (1, false)] {
            let mut number = 0;
            let rate = Search::default().highest(10.0, 0.0, 0.0, |rate| {
                number += 1;
                // Of each rate's trials the first is bad, then as many good ones as `every` says.
                let loss = if every == 1 || number % 3 == 1 { 0.2 } else { 0.0 };
                Ok::<_, Infallible>(Offered { rate, loss })
            });
            assert_eq!(rate.unwrap() > 0.0, found, "{every}");
        }
    }

    #[test]
    fn what_loses_at_any_rate_has_none() {
        let rate = Search::default()
            .highest(10.0, 0.0, 0.0, |rate| Ok::<_, Infallible>(Offered { rate, loss: 1.0 }));
        assert_eq!(rate.unwrap(), 0.0);
    }

    #[test]
    fn an_error_ends_the_search() {
        assert_eq!(Search::default().highest(10.0, 0.0, 0.0, |_| Err::<Offered, _>("broken")), Err("broken"));
    }
}
