package org.espalier.train;

import ai.onnx.proto.OnnxMl.TensorShapeProto.Dimension;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.ImageLayout;
import org.espalier.format.onnx.LogitRows;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * How the images of training batches change at random, so that no epoch shows the same ones again. Validation, calibration
 * and measuring see them as they are; the teacher of a batch sees what the student sees. What an image becomes follows from
 * the plan's seed, the stage, the step and the image alone.
 *
 * <p>Let u be random numbers that are uniform in [0, 1), others in each place. An image is, in this order,
 *
 * <ol>
 *   <li>mirrored, along each axis of {@code flip} where u &lt; 1/2;
 *   <li>shifted by whole pixels, to the right and down by two whole numbers that are uniform from −k to k, where k is
 *       {@code shift} times the width, or height, rounded;
 *   <li>zoomed about its centre by (1 + zoom)<sup>2u − 1</sup>, as often larger as smaller, and turned about it by rotate ·
 *       (2u − 1) degrees: values between pixels are bilinear;
 *   <li>changed in its values x: x' = m + c · (x − m) + b · s, with the mean m and the deviation s of all values of this
 *       image, c = 1 + contrast · (2u − 1) and b = brightness · (2u − 1). So it does not matter how values were scaled.
 * </ol>
 *
 * <p>Beyond its edges an image goes on as its mirror image: … c b a | a b c …. Flips and shifts alone change no value. uint8 is
 * rounded and kept within 0 to 255, floats are not bounded.
 *
 * @param shift a share of each side, at least 0 and below 1
 * @param zoom in [0, 1]
 * @param rotate degrees, in [0, 180]
 * @param brightness in [0, 1]
 * @param contrast in [0, 1]
 */
public record Augmentation(
    Flip flip, double shift, double zoom, double rotate, double brightness, double contrast) {
  /** Images are shown as they are. */
  public static final Augmentation NONE = new Augmentation(Flip.NONE, 0, 0, 0, 0, 0);

  private static final Set<SafetensorsDtype> TYPES =
      EnumSet.of(
          SafetensorsDtype.F32, SafetensorsDtype.F16, SafetensorsDtype.BF16, SafetensorsDtype.U8);

  /** Which sides change places. */
  public enum Flip {
    NONE,
    /** Left and right. */
    HORIZONTAL,
    /** Top and bottom. */
    VERTICAL,
    /** Each of both pairs of sides by itself. */
    BOTH;

    boolean isHorizontal() {
      return this == HORIZONTAL || this == BOTH;
    }

    boolean isVertical() {
      return this == VERTICAL || this == BOTH;
    }
  }

  /** Examples, or their labels, cannot be changed so. */
  public static final class Refused extends InputException {
    private static final long serialVersionUID = 1L;

    Refused(String message) {
      super(message);
    }
  }

  public Augmentation {
    Objects.requireNonNull(flip, "flip");
    require("shift", shift, Math.nextDown(1.0));
    require("zoom", zoom, 1);
    require("rotate", rotate, 180);
    require("brightness", brightness, 1);
    require("contrast", contrast, 1);
  }

  private static void require(String name, double value, double most) {
    if (!(value >= 0 && value <= most)) {
      throw new IllegalArgumentException(name + " " + value + "; it is from 0 to " + most);
    }
  }

  /** Whether anything changes. */
  public boolean isAny() {
    return !equals(NONE);
  }

  boolean moves() {
    return flip != Flip.NONE || shift > 0 || resamples();
  }

  boolean resamples() {
    return zoom > 0 || rotate > 0;
  }

  boolean changesValues() {
    return brightness > 0 || contrast > 0;
  }

  /**
   * The layout of the images that a model is shown.
   *
   * @throws Refused where its examples are none
   */
  static ImageLayout layout(OnnxModel model, Examples examples) {
    if (!(examples instanceof Examples.Labelled rows) || rows.areTexts()) {
      throw new Refused("images are augmented, and these examples are texts");
    }
    if (model.inputs().size() != 1 || rows.inputs().size() != 1) {
      throw new Refused(
          "models of one input, an image, are trained on augmented ones; "
              + model.name()
              + " has "
              + model.inputs().stream().map(ValueInfoProto::getName).toList());
    }
    ValueInfoProto asked = model.inputs().get(0);
    Examples.Input input = rows.inputs().get(0);
    List<Long> shape = input.shape();
    if (!TYPES.contains(input.type()) || shape.size() != 3) {
      throw noImages(asked, input);
    }
    List<Dimension> axes = asked.getType().getTensorType().getShape().getDimList();
    boolean says = axes.size() == 4 && (axes.get(1).hasDimValue() || axes.get(3).hasDimValue());
    ImageLayout layout =
        says
            ? ImageLayout.of(axes.get(1).getDimValue(), axes.get(3).getDimValue())
            : ImageLayout.of(shape.get(0), shape.get(2));
    if (layout == null
        || !ImageLayout.isChannels(shape.get(layout == ImageLayout.CHANNELS_FIRST ? 0 : 2))) {
      throw noImages(asked, input);
    }
    return layout;
  }

  private static Refused noImages(ValueInfoProto asked, Examples.Input input) {
    return new Refused(
        "the input "
            + asked.getName()
            + " is fed "
            + input.type()
            + " "
            + input.shape()
            + " an example; images are float32, float16, bfloat16 or uint8 [channels, height,"
            + " width] or [height, width, channels], with 3 channels or 1");
  }

  /**
   * Checks that labels of places in an image stay true.
   *
   * @param output the shape of the output that they are of, the examples first
   * @param labels how it falls into rows, one for each label
   * @throws Refused where they would have to move with the pixels
   */
  void checkLabels(long[] output, LogitRows labels) {
    long axes = Arrays.stream(output).skip(1).filter(size -> size > 1).count();
    boolean ofPlaces = axes - (labels.classes() > 1 ? 1 : 0) > 1;
    if (ofPlaces && moves()) {
      throw new Refused(
          "labels of pixels stay where they are, and flip, shift, zoom and rotate move the pixels;"
              + " brightness and contrast are right for them");
    }
  }
}
