package org.espalier.recipe;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.train.Examples;

/**
 * What a run needs and this module does not have: files behind references, tokens, and ONNX Runtime.
 * The command line's is made of {@code org.espalier.evaluate}.
 */
public interface RunHost {
  /**
   * The file that a recipe names.
   *
   * @param reference a path, relative to the recipe's folder, or {@code maven:…}
   * @throws org.espalier.InputException where there is none
   */
  Path file(String reference);

  /**
   * Sentences of WordNet, different ones in a fixed order.
   *
   * @param reference of one of its files in an artefact
   */
  List<String> wordNet(String reference, int count);

  /** The tokens of texts, with the special ones. */
  List<long[]> tokens(List<String> texts);

  /** The model itself, in which weights that it computes from constants are constants and Dropout nodes drop nothing. */
  OnnxModel withComputedWeights(OnnxModel model);

  /** Runs texts for calibration. */
  ActivationSource calibration(List<String> texts);

  /** Runs labelled examples for calibration. */
  ActivationSource calibration(Examples.Labelled examples);

  /**
   * Looks whether a model can be compared on texts.
   *
   * @param texts those that it will be compared on
   * @throws org.espalier.InputException where ONNX Runtime does not load it, or does not run it on those that ask
   *     most of it
   */
  void checkComparable(Path model, List<String> texts);

  /**
   * The same on labelled examples.
   *
   * @param example one of those that it will be compared on
   * @throws org.espalier.InputException where ONNX Runtime does not load it, or does not run it on the example
   */
  void checkComparable(Path model, Examples.Labelled example);

  /** How closely a model follows another on texts, as names with numbers. */
  Map<String, Object> compare(Path reference, Path candidate, List<String> texts);

  /** The same on labelled examples. */
  Map<String, Object> compare(Path reference, Path candidate, Examples.Labelled examples);

  /** What ran, by name: versions, processor, threads. */
  Map<String, Object> machine();

  /** A line for people. */
  void note(String text);

  /**
   * How far the run is.
   *
   * @param text what is done now with loss, speed and time left
   * @param done the part that is done, in any unit
   * @param total all of it; 0 where it is not known
   */
  void progress(String text, long done, long total);

  /** Whether the user asked the run to stop at a checkpoint. */
  boolean stopRequested();
}
