package org.espalier.online;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInput;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.zip.CRC32C;
import java.util.zip.CheckedInputStream;
import java.util.zip.CheckedOutputStream;
import org.espalier.InputException;
import org.espalier.online.drift.DriftDetectors;
import org.espalier.online.memory.SavedState;
import org.espalier.online.privacy.PrivacyLedger;
import org.espalier.online.privacy.PrivacyPass;

/**
 * All that decides a learner's future, as it is saved.
 *
 * @param passes of private learning
 * @param drawn random numbers for what is learned again
 * @param multipliers of the constraint
 * @param now what steps change, as it is
 * @param good the same of the last good weights
 * @param beginning the same as it was at first
 * @param replayed the sample of what was learned
 * @param heldOut the examples that judge weights
 * @param learnedSince the examples that were learned since the weights were good
 */
record LearnerState(
    List<PrivacyPass> passes,
    Counts counts,
    UsualSteps.Seen usual,
    long drawn,
    double[] multipliers,
    StateMemory.Checkpoint now,
    StateMemory.Checkpoint good,
    StateMemory.Checkpoint beginning,
    Prequential metrics,
    DriftDetectors drift,
    List<Example> replayed,
    List<Example> heldOut,
    List<Example> learnedSince) {
  private static final int MAGIC = 0x65736f6c; // "esol"
  private static final int FORMAT = 5;

  /** The oldest that is read. It has what follows from the weights too. */
  private static final int OLDEST = 3;

  /** The first with checksums, behind the passes and at the end, each of all that is before it. */
  private static final int SUMMED = 5;

  private static final int MOST_EXAMPLES = 1 << 24;

  /** The name of the model's identity among the lines that describe a learner. */
  private static final String IDENTITY = "model";

  /**
   * How far a learner is.
   *
   * @param rateStart the step at which the schedule of the learning rate began
   * @param seen examples that came
   * @param learned examples that were learned
   * @param removed examples that the guard took out or took back
   * @param version that was published last
   */
  record Counts(long steps, long rateStart, long seen, long learned, long removed, long version) {}

  /**
   * Writes what {@link #read} reads.
   *
   * @param description of the learner, a setting a line
   */
  void write(OutputStream stream, String description, ExampleForm form) throws IOException {
    CheckedOutputStream summed = new CheckedOutputStream(stream, new CRC32C());
    DataOutputStream out = new DataOutputStream(new BufferedOutputStream(summed));
    out.writeInt(MAGIC);
    out.writeInt(FORMAT);
    SavedState.write(out, description);
    PrivacyLedger.write(out, passes);
    writeSum(out, summed);
    out.writeInt(form.features());
    out.writeInt(form.outputs());
    for (long v :
        new long[] {
          counts.steps(),
          counts.rateStart(),
          counts.seen(),
          counts.learned(),
          counts.removed(),
          counts.version(),
          usual.losses(),
          usual.norms(),
          drawn
        }) {
      out.writeLong(v);
    }
    out.writeDouble(usual.meanLoss());
    out.writeDouble(usual.meanNorm());
    out.writeInt(usual.spikesInARow());
    for (double multiplier : multipliers) {
      out.writeDouble(multiplier);
    }
    StateMemory.write(out, now);
    StateMemory.write(out, beginning);
    out.writeBoolean(good != beginning);
    if (good != beginning) {
      StateMemory.write(out, good);
    }
    metrics.save(out);
    drift.save(out);
    for (List<Example> list : List.of(replayed, heldOut, learnedSince)) {
      out.writeInt(list.size());
      for (Example example : list) {
        form.write(out, example);
      }
    }
    out.writeInt(MAGIC);
    writeSum(out, summed);
    out.flush();
  }

  private static void writeSum(DataOutputStream out, CheckedOutputStream summed)
      throws IOException {
    out.flush();
    out.writeInt((int) summed.getChecksum().getValue());
  }

  private static void checkSum(DataInput in, CheckedInputStream summed, int format)
      throws IOException {
    if (format >= SUMMED) {
      int sum = (int) summed.getChecksum().getValue();
      if (in.readInt() != sum) {
        throw SavedState.damaged("its checksum is of other bytes");
      }
    }
  }

  private static CheckedInputStream summed(InputStream stream) {
    return new CheckedInputStream(new BufferedInputStream(stream), new CRC32C());
  }

  /** The format of a state. */
  private static int readFormat(DataInput in) throws IOException {
    if (in.readInt() != MAGIC) {
      throw SavedState.damaged("it does not begin as one");
    }
    int format = in.readInt();
    if (format < OLDEST || format > FORMAT) {
      throw new InputException(
          "the learner's saved state is of format "
              + format
              + "; this espalier knows "
              + OLDEST
              + " to "
              + FORMAT);
    }
    return format;
  }

  /**
   * The passes of private learning of which a saved state tells.
   *
   * @throws InputException if it is damaged or of a newer format
   */
  static List<PrivacyPass> passes(InputStream stream) throws IOException {
    CheckedInputStream summed = summed(stream);
    DataInputStream in = new DataInputStream(summed);
    try {
      int format = readFormat(in);
      SavedState.text(in); // the description of the learner
      List<PrivacyPass> passes = PrivacyLedger.read(in);
      checkSum(in, summed, format);
      return passes;
    } catch (EOFException e) {
      throw new InputException("the learner's saved state is damaged: it ends too early", e);
    }
  }

  /**
   * Reads the whole state.
   *
   * @param stream may be read beyond its end
   * @param description of the learner that is to take it
   * @param weights say what checkpoints are like; they do not change
   * @throws InputException where it is damaged, of another format, or of a learner that is described otherwise
   */
  static LearnerState read(
      InputStream stream,
      String description,
      ExampleForm form,
      OnlineSettings settings,
      WeightState weights)
      throws IOException {
    CheckedInputStream summed = summed(stream);
    DataInputStream in = new DataInputStream(summed);
    int format = readFormat(in);
    String saved = SavedState.text(in);
    if (!description.equals(saved)) {
      throw new InputException(
          "the learner was saved with other settings:\n  " + difference(saved, description));
    }
    List<PrivacyPass> passes = PrivacyLedger.read(in);
    checkSum(in, summed, format);
    SavedState.count(in, form.features(), form.features());
    SavedState.count(in, form.outputs(), form.outputs());
    long[] numbers = new long[9];
    for (int i = 0; i < numbers.length; i++) {
      numbers[i] = in.readLong();
      if (numbers[i] < 0) {
        throw SavedState.damaged("a count is negative");
      }
    }
    Counts counts =
        new Counts(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]);
    if (counts.rateStart() > counts.steps() || counts.version() < 1) {
      throw SavedState.damaged("its counts contradict each other");
    }
    UsualSteps.Seen usual =
        new UsualSteps.Seen(in.readDouble(), numbers[6], in.readDouble(), numbers[7], in.readInt());
    double[] multipliers = new double[form.outputs()];
    for (int c = 0; c < multipliers.length; c++) {
      multipliers[c] = in.readDouble();
    }
    StateMemory.Checkpoint now = weights.read(in, format);
    StateMemory.Checkpoint second = weights.read(in, format);
    boolean isOld = format == OLDEST; // which has the good weights second
    StateMemory.Checkpoint third = isOld || in.readBoolean() ? weights.read(in, format) : second;
    StateMemory.Checkpoint good = isOld ? second : third;
    StateMemory.Checkpoint beginning = isOld ? third : second;
    Prequential metrics = Prequential.of(settings, form.outputs());
    metrics.load(in);
    DriftDetectors drift = settings.detectors();
    drift.load(in);
    Guard.Quality quality = settings.guard().quality();
    List<Example> replayed = examples(in, Replay.capacity(settings), form);
    List<Example> heldOut = examples(in, quality == null ? 0 : quality.window(), form);
    List<Example> learnedSince = examples(in, MOST_EXAMPLES, form);
    if (in.readInt() != MAGIC) {
      throw SavedState.damaged("it does not end as one");
    }
    checkSum(in, summed, format);
    return new LearnerState(
        passes,
        counts,
        usual,
        numbers[8],
        multipliers,
        now,
        good,
        beginning,
        metrics,
        drift,
        replayed,
        heldOut,
        learnedSince);
  }

  private static List<Example> examples(DataInput in, int most, ExampleForm form)
      throws IOException {
    int n = SavedState.count(in, 0, most);
    List<Example> list = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      list.add(form.read(in));
    }
    return list;
  }

  /** Where a saved description differs from a learner's: settings by their names, and the model's identity. */
  private static String difference(String saved, String own) {
    Map<String, String> then = named(saved);
    Map<String, String> now = named(own);
    Set<String> names = new LinkedHashSet<>(then.keySet());
    names.addAll(now.keySet());
    names.removeIf(name -> Objects.equals(then.get(name), now.get(name)));
    List<String> told = new ArrayList<>();
    for (String name : names) {
      told.add(
          name.equals(IDENTITY)
              ? "what of the model is not learned, its graph or frozen weights, differs"
              : name + ": " + then.get(name) + ", here " + now.get(name));
    }
    return String.join("\n  ", told);
  }

  private static Map<String, String> named(String description) {
    Map<String, String> values = new LinkedHashMap<>();
    for (String line : description.lines().toList()) {
      String[] parts = line.split(": ", 2);
      values.put(parts[0], parts[parts.length - 1]);
    }
    return values;
  }
}
