package org.espalier.evaluate;

import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.function.ToDoubleFunction;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.espalier.InputException;

/**
 * A bound that a measure has to keep: {@code accuracy >= 0.9}, {@code accuracy >= reference - 0.01}, {@code size_ratio <= 0.3}.
 *
 * @param isLeast whether the measure may not lie below the bound; else it may not lie above
 * @param isFromReference whether the bound is the reference's own number plus {@code value}
 * @param value the bound, or what is added to the reference's number
 */
public record Requirement(Measure measure, boolean isLeast, boolean isFromReference, double value) {
  private static final String NUMBER = "\\d*\\.?\\d+(?:[eE][+-]?\\d+)?";
  private static final Pattern FORM =
      Pattern.compile(
          "\\s*(?<measure>\\w+)\\s*(?<side>>=|<=)\\s*(?:(?<bound>-?"
              + NUMBER
              + ")|reference(?:\\s*(?<sign>[+-])\\s*(?<offset>"
              + NUMBER
              + "))?)\\s*");

  public Requirement {
    if (!Double.isFinite(value)) {
      throw new InputException("the bound of " + measure.key() + " is beyond all numbers");
    }
  }

  /**
   * Whether a requirement is met.
   *
   * @param output of the models that was measured; null where it is the first one, or the model itself
   * @param measured the candidate's number; NaN where it is not defined, which meets nothing
   * @param bound what it may not lie beyond by more than rounding does
   */
  public record Verdict(Requirement requirement, String output, double measured, double bound) {
    /** What subtraction may lose of the larger number. */
    private static final double ROUNDING = 1e-12;

    public boolean isMet() {
      double beyond = requirement.isLeast ? bound - measured : measured - bound;
      return beyond <= ROUNDING * Math.max(Math.abs(bound), Math.abs(requirement.value));
    }

    /** The values under their JSON keys, in a fixed order. */
    public Map<String, Object> toMap() {
      Map<String, Object> map = new LinkedHashMap<>();
      map.put("requirement", requirement.toString());
      if (output != null) {
        map.put("output", output);
      }
      map.put("measured", measured);
      map.put("bound", bound);
      map.put("met", isMet());
      return map;
    }

    /** What is required and what was measured. */
    @Override
    public String toString() {
      return requirement
          + (output == null ? "" : " of " + output)
          + (Double.isNaN(measured) ? ", which has no value here" : ", measured " + text(measured))
          + (requirement.isFromReference ? ", the bound is " + text(bound) : "");
    }

    private static String text(double number) {
      return String.format(Locale.ROOT, "%.6g", number);
    }
  }

  /**
   * Reads one.
   *
   * @throws InputException where the text is none
   */
  public static Requirement of(String text) {
    Matcher form = FORM.matcher(text);
    if (!form.matches()) {
      throw new InputException(
          "«"
              + text
              + "» is no requirement; one is a measure, >= or <=, and a number or the reference's"
              + " own, as in 'accuracy >= 0.9' or 'accuracy >= reference - 0.01'");
    }
    Measure measure = Measure.of(form.group("measure"));
    boolean isLeast = form.group("side").equals(">=");
    if (form.group("bound") != null) {
      return new Requirement(measure, isLeast, false, Double.parseDouble(form.group("bound")));
    }
    if (!measure.isOfEach()) {
      throw new InputException(
          "«"
              + text
              + "»: "
              + measure.key()
              + " compares with the reference, which has none of its own; a number is needed");
    }
    double offset = form.group("offset") == null ? 0 : Double.parseDouble(form.group("offset"));
    return new Requirement(
        measure, isLeast, true, "-".equals(form.group("sign")) ? -offset : offset);
  }

  /**
   * Refuses a requirement of what is not measured.
   *
   * @throws InputException where it is not
   */
  public void requireAmong(Set<Measure> measured) {
    if (!measured.contains(measure)) {
      throw new InputException(
          "«"
              + this
              + "»: "
              + measure.key()
              + " is not measured here; measured are "
              + measured.stream().map(Measure::key).collect(Collectors.joining(", ")));
    }
  }

  /**
   * Compares with what was measured.
   *
   * @param output of the models that was measured; null where it is the first one, or the model itself
   * @param numbers gives what was measured under a key of JSON; NaN where nothing was
   */
  public Verdict verdict(String output, ToDoubleFunction<String> numbers) {
    double bound = isFromReference ? numbers.applyAsDouble(measure.referenceKey()) + value : value;
    return new Verdict(this, output, numbers.applyAsDouble(measure.key()), bound);
  }

  /** As it is written. */
  @Override
  public String toString() {
    String number = Double.toString(Math.abs(value)).replaceFirst("\\.0$", "");
    String bound =
        !isFromReference
            ? (value < 0 ? "-" : "") + number
            : "reference" + (value == 0 ? "" : (value < 0 ? " - " : " + ") + number);
    return measure.key() + (isLeast ? " >= " : " <= ") + bound;
  }
}
