package org.espalier.online;

import java.util.List;
import org.espalier.op.FusedAdamW;
import org.espalier.op.FusedSgd;

/** The optimizer's native operation, and what it counts by tensor. Not for several threads. */
interface Descent extends AutoCloseable {
  /** One step on all tensors. */
  void step(double learningRate);

  /** How many steps a tensor's momentum or moments know of; 0 where they hold nothing yet. */
  long steps(int tensor);

  /** Sets the number: 0 has the next step begin anew, others belong to restored memory. */
  void steps(int tensor, long number);

  @Override
  void close();

  /** Gradient descent with momentum; it needs to know of one step alone whether there was one. */
  static Descent sgd(List<FusedSgd.Parameter> parameters, OnlineSettings settings) {
    FusedSgd sgd =
        new FusedSgd(
            parameters,
            FusedSgd.Options.of(1)
                .withMomentum(settings.momentum())
                .withWeightDecay(settings.weightDecay()));
    return new Descent() {
      @Override
      public void step(double learningRate) {
        sgd.learningRate(learningRate);
        sgd.step();
      }

      @Override
      public long steps(int tensor) {
        return sgd.first(tensor) ? 0 : 1;
      }

      @Override
      public void steps(int tensor, long number) {
        sgd.first(tensor, number == 0);
      }

      @Override
      public void close() {
        sgd.close();
      }
    };
  }

  static Descent adamW(List<FusedAdamW.Parameter> parameters, OnlineSettings settings) {
    OnlineSettings.AdamW given = settings.adamW();
    FusedAdamW adam =
        new FusedAdamW(
            parameters,
            FusedAdamW.Options.of(1)
                .withBetas(given.beta1(), given.beta2())
                .withEpsilon(given.epsilon())
                .withWeightDecay(settings.weightDecay()));
    return new Descent() {
      @Override
      public void step(double learningRate) {
        adam.learningRate(learningRate);
        adam.step();
      }

      @Override
      public long steps(int tensor) {
        return adam.steps(tensor);
      }

      @Override
      public void steps(int tensor, long number) {
        adam.steps(tensor, number);
      }

      @Override
      public void close() {
        adam.close();
      }
    };
  }
}
