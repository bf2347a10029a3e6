package org.espalier.compress;

/** Receives the progress of a long run. It is called often, by one of the threads that run it or by several. */
@FunctionalInterface
public interface Progress {
  /** Ignores all progress. */
  Progress NONE = (phase, done, total) -> {};

  /** What a run does; it may skip one, and do the first ones in turns. */
  enum Phase {
    /** Reads examples; counted by these. */
    READ("reading"),
    /** Sees what a model does on examples; counted by these. */
    CALIBRATE("calibrating"),
    /** Moves scale between activations and weights; counted by activations. */
    EQUALIZE("equalizing"),
    /** Fits weights to what was seen; counted by these. */
    FIT("fitting weights"),
    /** Sees what smaller models do on a few of them; counted by the models. */
    MEASURE("trying smaller models"),
    /** Finds weights that int8 would spoil; counted by the models tried, of which there are fewer as a rule. */
    SEARCH("finding sensitive weights"),
    /** Compares what two models do on examples; counted by these, each as often as it is run. */
    EVALUATE("evaluating"),
    /** Times two models; counted by their runs, of which there may be more than are told. */
    TIME("timing"),
    /** Finds the weights to prune. */
    SELECT("selecting"),
    /** Computes and writes the output. */
    WRITE("writing");

    private final String text;

    Phase(String text) {
      this.text = text;
    }

    /** What is done, in a word or three for people. */
    public String text() {
      return text;
    }
  }

  /**
   * @param phase what is being done
   * @param done bytes of the input that this phase is through with, or what it is counted by
   * @param total all that this phase goes through; 0 where that is not known
   */
  void at(Phase phase, long done, long total);
}
