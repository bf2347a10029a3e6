package org.espalier.train;

import java.util.List;
import java.util.Objects;
import org.espalier.compress.Glob;

/**
 * How a stage trains. Its length is given in steps or in epochs; the other is 0.
 *
 * @param steps optimizer steps, at least 0
 * @param epochs passes over the training examples, at least 0
 * @param batch examples a step, at least 1
 * @param optimizer the update rule
 * @param schedule how the learning rate changes
 * @param objective what is minimised
 * @param validateEvery steps between two looks at the validation examples; 0 looks at the start and
 *     the end only. The stage ends with the state that validated best, the one at its start included
 * @param embeddings which tables that are only looked up in are trained
 */
public record Training(
    long steps,
    double epochs,
    int batch,
    Optimizer optimizer,
    Schedule schedule,
    Objective objective,
    int validateEvery,
    Embeddings embeddings) {
  private static final Training NONE =
      new Training(0, 0, 1, Optimizer.AdamW.of(1e-5), Schedule.constant(), Objective.ofLabels(), 0);

  /**
   * Which tables that are only looked up in are trained.
   *
   * @param tables those that {@code NAMED} takes; else none
   */
  public record Embeddings(Rule rule, List<Glob> tables) {
    public static final Embeddings AUTO = new Embeddings(Rule.AUTO, List.of());
    public static final Embeddings ALWAYS = new Embeddings(Rule.ALWAYS, List.of());
    public static final Embeddings NEVER = new Embeddings(Rule.NEVER, List.of());

    /** How tables are chosen. */
    public enum Rule {
      /**
       * All where labels are learned, or another model is followed: the tables of the model's own original are
       * right.
       */
      AUTO,
      ALWAYS,
      NEVER,
      NAMED
    }

    public Embeddings {
      tables = List.copyOf(tables);
      if (tables.isEmpty() == (rule == Rule.NAMED)) {
        throw new IllegalArgumentException(rule + " with the tables " + tables);
      }
    }

    /** These and no others. */
    public static Embeddings named(List<Glob> tables) {
      return new Embeddings(Rule.NAMED, tables);
    }
  }

  public Training {
    Objects.requireNonNull(optimizer, "optimizer");
    Objects.requireNonNull(schedule, "schedule");
    Objects.requireNonNull(objective, "objective");
    Objects.requireNonNull(embeddings, "embeddings");
    if (steps < 0 || !(epochs >= 0 && epochs < 1e9) || steps > 0 && epochs > 0) {
      throw new IllegalArgumentException(
          steps + " steps and " + epochs + " epochs; one of them says how long, the other is 0");
    }
    if (batch < 1) {
      throw new IllegalArgumentException("batches of " + batch + " examples; 1 or more");
    }
    if (validateEvery < 0) {
      throw new IllegalArgumentException("validation every " + validateEvery + " steps; 0 or more");
    }
  }

  /** The same with {@link Embeddings#AUTO}. */
  public Training(
      long steps,
      double epochs,
      int batch,
      Optimizer optimizer,
      Schedule schedule,
      Objective objective,
      int validateEvery) {
    this(steps, epochs, batch, optimizer, schedule, objective, validateEvery, Embeddings.AUTO);
  }

  /** No training: the stage changes the model and that is all. */
  public static Training none() {
    return NONE;
  }

  /** The same with another objective. */
  public Training with(Objective other) {
    return new Training(
        steps, epochs, batch, optimizer, schedule, other, validateEvery, embeddings);
  }

  /** The same with other tables trained. */
  public Training with(Embeddings other) {
    return new Training(steps, epochs, batch, optimizer, schedule, objective, validateEvery, other);
  }

  /**
   * Whether a table that is only looked up in is trained.
   *
   * @param ownTeacher whether the teacher is the model as it is given
   */
  boolean trainsEmbedding(String name, boolean ownTeacher) {
    return isAny()
        && switch (embeddings.rule()) {
          case AUTO -> objective.labels() > 0 || !ownTeacher;
          case ALWAYS -> true;
          case NEVER -> false;
          case NAMED -> embeddings.tables().stream().anyMatch(glob -> glob.test(name));
        };
  }

  /** Whether there is anything to do. */
  public boolean isAny() {
    return steps > 0 || epochs > 0;
  }

  /** The number of steps for so many examples. */
  public long steps(int examples) {
    return epochs > 0 ? (long) Math.ceil(epochs * examples / batch) : steps;
  }

  /**
   * The learning rate over a stage: a linear rise over the first steps, then a course to a share of it.
   *
   * @param shape the course after the rise
   * @param warmup the share of the steps that the rise takes, in [0, 1)
   * @param last the share of the learning rate that the course reaches one step after the last, in [0, 1]
   */
  public record Schedule(Shape shape, double warmup, double last) {
    /** The course of the learning rate. */
    public enum Shape {
      CONSTANT,
      LINEAR,
      COSINE
    }

    public Schedule {
      Objects.requireNonNull(shape, "shape");
      if (!(warmup >= 0 && warmup < 1)) {
        throw new IllegalArgumentException("warmup " + warmup + "; it is in [0, 1)");
      }
      if (!(last >= 0 && last <= 1)) {
        throw new IllegalArgumentException("last " + last + "; it is in [0, 1]");
      }
    }

    public static Schedule constant() {
      return new Schedule(Shape.CONSTANT, 0, 1);
    }

    /** A rise over a twentieth of the steps, then half a cosine down to nothing. */
    public static Schedule cosine() {
      return new Schedule(Shape.COSINE, 0.05, 0);
    }

    /** The factor of the learning rate at {@code step}, counted from 0, of {@code steps}. */
    public double factor(long step, long steps) {
      double rise = warmup * steps;
      if (step + 1 < rise) {
        return (step + 1) / rise;
      }
      double t = steps > rise + 1 ? Math.min(1, (step - rise) / (steps - rise)) : 0;
      t = Math.max(0, t);
      return switch (shape) {
        case CONSTANT -> 1;
        case LINEAR -> 1 + (last - 1) * t;
        case COSINE -> last + (1 - last) * (1 + Math.cos(Math.PI * t)) / 2;
      };
    }
  }
}
