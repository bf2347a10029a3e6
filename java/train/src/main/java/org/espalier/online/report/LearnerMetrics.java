package org.espalier.online.report;

import io.micrometer.core.instrument.FunctionCounter;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.MeterRegistry;
import io.micrometer.core.instrument.binder.MeterBinder;
import java.util.List;
import java.util.Locale;
import java.util.function.ToDoubleFunction;
import org.espalier.online.Event;
import org.espalier.online.OnlineLearner;

/**
 * The numbers of a learner for Micrometer: {@code espalier.examples.seen}, {@code .learned} and {@code
 * .removed}, {@code espalier.steps}, {@code espalier.version}, {@code espalier.slots}, events by kind,
 * and the prequential metrics, with the distance of the last batch, as {@code espalier.metric}. Not to be bound to a learner that was closed.
 */
public final class LearnerMetrics implements MeterBinder {
  private static final List<String> METRICS =
      List.of(
          "accuracy",
          "accuracy_window",
          "accuracy_fading",
          "log_loss",
          "log_loss_window",
          "log_loss_fading",
          "auc_window",
          "mae",
          "mae_window",
          "mae_fading",
          "distance");

  private final OnlineLearner learner;

  public LearnerMetrics(OnlineLearner learner) {
    this.learner = learner;
  }

  @Override
  public void bindTo(MeterRegistry registry) {
    count(registry, "espalier.examples.seen", "Examples that came", OnlineLearner::seen);
    count(
        registry,
        "espalier.examples.learned",
        "Examples that were learned",
        OnlineLearner::learned);
    count(
        registry,
        "espalier.examples.removed",
        "Examples that the guard took out or took back",
        OnlineLearner::removed);
    count(registry, "espalier.steps", "Steps that were done", OnlineLearner::steps);
    gauge(
        registry,
        "espalier.version",
        "The newest version that readers get",
        OnlineLearner::version);
    gauge(registry, "espalier.slots", "Versions that have memory", OnlineLearner::slots);
    if (learner.settings().privacy() != null) {
      gauge(
          registry,
          "espalier.epsilon",
          "The privacy loss of all that was learned",
          OnlineLearner::epsilon);
    }
    for (String name : METRICS) {
      boolean classes = learner.settings().loss().isForClasses();
      if (name.startsWith("mae") == classes && !name.equals("distance")
          || name.equals("distance") && learner.settings().constraint() == null) {
        continue;
      }
      Gauge.builder("espalier.metric", learner, l -> l.metrics().getOrDefault(name, Double.NaN))
          .tag("name", name)
          .description("Prequential metrics; the distance is that of the last batch")
          .register(registry);
    }
    for (Event.Kind kind : Event.Kind.values()) {
      var counter =
          io.micrometer.core.instrument.Counter.builder("espalier.events")
              .tag("kind", kind.name().toLowerCase(Locale.ROOT))
              .description("What the guard and the detectors did")
              .register(registry);
      learner.onEvent(
          event -> {
            if (event.kind() == kind) {
              counter.increment();
            }
          });
    }
  }

  private void count(
      MeterRegistry registry,
      String name,
      String description,
      ToDoubleFunction<OnlineLearner> value) {
    FunctionCounter.builder(name, learner, value).description(description).register(registry);
  }

  private void gauge(
      MeterRegistry registry,
      String name,
      String description,
      ToDoubleFunction<OnlineLearner> value) {
    Gauge.builder(name, learner, value).description(description).register(registry);
  }
}
