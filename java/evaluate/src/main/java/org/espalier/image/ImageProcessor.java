package org.espalier.image;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.JsonFile;
import org.espalier.format.Names;

/**
 * How files of images become what a model takes, as the {@code preprocessor_config.json} beside a model of Hugging Face says it:
 * resized, cropped around the middle, and each value v of 0 to 255 as (v · rescale_factor − image_mean) / image_std. Immutable and
 * for several threads.
 *
 * <p>What is read of it: {@code do_resize}, {@code size} ({@code height} and {@code width}, or {@code shortest_edge}), {@code
 * resample} (the numbers of Pillow), {@code crop_pct}, {@code do_center_crop}, {@code crop_size}, {@code do_rescale}, {@code
 * rescale_factor}, {@code do_normalize}, {@code image_mean}, {@code image_std} and {@code do_flip_channel_order} (blue first).
 * Other steps that are switched on are refused, other keys ignored.
 */
public final class ImageProcessor {
  /** The name of the file beside a model. */
  public static final String FILE_NAME = "preprocessor_config.json";

  private static final int MOST_BYTES = 100_000;

  /** Of a side in pixels. */
  static final int MOST_SIDE = 16_384;

  /** The steps that are known; others that are switched on would be left out. */
  private static final Set<String> STEPS =
      Set.of(
          "do_resize",
          "do_center_crop",
          "do_rescale",
          "do_normalize",
          "do_flip_channel_order",
          "do_convert_rgb");

  /** Of other names, what changes images where it is true, or a number above 1. */
  private static final Set<String> OTHER_STEPS =
      Set.of("rescale_offset", "include_top", "keep_aspect_ratio", "ensure_multiple_of");

  /** What torchvision and timm call what is read here, which would be left out. */
  private static final Map<String, String> OTHER_NAMES =
      Map.of("mean", "image_mean", "std", "image_std", "interpolation", "resample");

  private final Path file;
  private final Size size;
  private final Resampling filter;
  private final Size crop;
  private final double scale;
  private final float[] mean;
  private final float[] deviation;
  private final boolean blueFirst;

  /**
   * A size in pixels.
   *
   * @param width 0 where the height is that of the shorter side
   */
  private record Size(int height, int width) {
    /** The size that an image gets, whose other side follows from its own. */
    Size of(Pixels image) {
      if (width > 0) {
        return this;
      }
      long shorter = Math.min(image.width(), image.height());
      int longer = (int) ((long) height * Math.max(image.width(), image.height()) / shorter);
      if (longer > MOST_SIDE) {
        throw new InputException(
            "of "
                + image.width()
                + " x "
                + image.height()
                + " pixels the longer side would become "
                + longer);
      }
      return image.width() <= image.height() ? new Size(longer, height) : new Size(height, longer);
    }
  }

  private ImageProcessor(Path file, Reader json) {
    this.file = file;
    json.checkSteps();
    Size read = json.size();
    Size cropped = json.crop();
    double share = json.number("crop_pct", 0);
    if (share != 0 && read != null) {
      // ConvNext's and ResNet's: below 384 a larger image is made, and the middle of it taken.
      if (!(share > 0 && share <= 1) || read.width != 0 && read.width != read.height) {
        throw json.wrong("crop_pct", "a share of a square, above 0 and at most 1, is right");
      }
      Size square = new Size(read.height, read.height);
      cropped = read.height < 384 ? square : null;
      read = read.height < 384 ? new Size((int) (read.height / share), 0) : square;
    }
    size = read;
    crop = cropped;
    filter = json.filter();
    scale = json.flag("do_rescale", true) ? json.number("rescale_factor", 1 / 255.0) : 1;
    boolean normalized = json.flag("do_normalize", json.has("image_mean") || json.has("image_std"));
    mean = normalized ? json.numbers("image_mean") : new float[] {0};
    deviation = normalized ? json.numbers("image_std") : new float[] {1};
    for (float value : deviation) {
      if (value <= 0) {
        throw json.wrong("image_std", "numbers above 0 are right");
      }
    }
    blueFirst = json.flag("do_flip_channel_order", false);
  }

  /**
   * Reads a file.
   *
   * @throws InputException where it is none, or asks for steps that are not known
   */
  public static ImageProcessor read(Path file) {
    JsonNode json = JsonFile.read(file, MOST_BYTES);
    if (!json.isObject()) {
      throw new InputException(file + " is not a JSON object");
    }
    return new ImageProcessor(file, new Reader(file, json));
  }

  /** The file that it was read of. */
  public Path file() {
    return file;
  }

  /** Height and width of what it makes of any image; null where that is the image's own, or follows from it. */
  int[] size() {
    Size made = crop != null ? crop : size;
    return made == null || made.width == 0 ? null : new int[] {made.height, made.width};
  }

  /** An image in its size. */
  /** Whether images are resized or cropped. */
  boolean changesSizes() {
    return size != null || crop != null;
  }

  Pixels sized(Pixels image) {
    Pixels made = image;
    if (size != null) {
      Size own = size.of(image);
      made = filter.resize(image, own.width, own.height);
    }
    return crop == null ? made : made.middle(crop.width, crop.height);
  }

  /** Whether values stay as they are in the file. */
  boolean keepsValues() {
    for (int c = 0; c < Math.max(mean.length, deviation.length); c++) {
      if (mean(c) != 0 || deviation(c) != 1) {
        return false;
      }
    }
    return scale == 1;
  }

  /** Which of an image's channels a model has at a place. */
  int channel(int place, int channels) {
    return blueFirst ? channels - 1 - place : place;
  }

  /**
   * What each value of 0 to 255 becomes in a channel.
   *
   * @param place of the channel in what the model takes
   */
  float[] values(int place) {
    float[] values = new float[256];
    for (int v = 0; v < values.length; v++) {
      values[v] = ((float) (v * scale) - mean(place)) / deviation(place);
    }
    return values;
  }

  /**
   * @throws InputException where means or deviations are of another number of channels
   */
  void requireChannels(int channels) {
    for (float[] own : new float[][] {mean, deviation}) {
      if (own.length != 1 && own.length != channels) {
        throw new InputException(
            file
                + ": image_mean and image_std have "
                + own.length
                + " numbers; the model takes images of "
                + channels
                + (channels == 1 ? " channel" : " channels"));
      }
    }
  }

  private float mean(int place) {
    return mean[mean.length == 1 ? 0 : place];
  }

  private float deviation(int place) {
    return deviation[deviation.length == 1 ? 0 : place];
  }

  /** The keys of a file; null is as if a key were not there. */
  private record Reader(Path file, JsonNode json) {
    boolean has(String key) {
      return json.hasNonNull(key);
    }

    InputException wrong(String key, String right) {
      return new InputException(
          file + ": " + key + " is " + Names.quote(json.path(key).toString()) + "; " + right);
    }

    void checkSteps() {
      if (isOf("Perceiver")) {
        throw new InputException(
            file + " is of Perceiver, whose images are cropped first, which is not known");
      }
      for (Map.Entry<String, JsonNode> e : json.properties()) {
        String right = OTHER_NAMES.get(e.getKey());
        if (right != null) {
          throw wrong(e.getKey(), "the key " + right + " is right");
        }
        boolean step = e.getKey().startsWith("do_") || OTHER_STEPS.contains(e.getKey());
        boolean on =
            e.getValue().isNumber() ? e.getValue().asDouble() > 1 : e.getValue().asBoolean();
        if (step && !STEPS.contains(e.getKey()) && on) {
          throw wrong(
              e.getKey(),
              "this step is not known, and the model would see other images without it; examples"
                  + " as tensors (.safetensors) can be made by any steps");
        }
      }
    }

    boolean flag(String key, boolean usual) {
      if (!has(key)) {
        return usual;
      }
      if (!json.get(key).isBoolean()) {
        throw wrong(key, "true or false is right");
      }
      return json.get(key).booleanValue();
    }

    double number(String key, double usual) {
      if (!has(key)) {
        return usual;
      }
      return number(key, json.get(key));
    }

    private double number(String key, JsonNode value) {
      if (!value.isNumber() || !Float.isFinite(value.floatValue())) {
        throw wrong(key, "a number is right");
      }
      return value.doubleValue();
    }

    float[] numbers(String key) {
      JsonNode given = json.path(key);
      if (given.isNumber()) {
        return new float[] {(float) number(key, given)};
      }
      if (!given.isArray() || given.isEmpty() || given.size() > 4) {
        throw wrong(key, "a number for each channel is right, as [0.485, 0.456, 0.406]");
      }
      float[] numbers = new float[given.size()];
      for (int i = 0; i < numbers.length; i++) {
        numbers[i] = (float) number(key, given.get(i));
      }
      return numbers;
    }

    Resampling filter() {
      double number = number("resample", 2);
      Resampling[] known = Resampling.values();
      if (number != Math.rint(number) || number < 0 || number >= known.length) {
        throw wrong("resample", "a filter of Pillow, 0 to 5, is right; 2 is bilinear");
      }
      return known[(int) number];
    }

    Size size() {
      if (!flag("do_resize", has("size"))) {
        return null;
      }
      JsonNode given = json.path("size");
      String right = "{\"height\": 224, \"width\": 224} or {\"shortest_edge\": 256} is right";
      if (given.isNumber()) {
        int side = side("size", given);
        if (!flag("do_center_crop", false) && !has("crop_pct")) {
          return new Size(side, side);
        }
        if (has("crop_pct") || isOf("CLIP")) { // which mean the shorter side by a number
          return new Size(side, 0);
        }
        throw wrong(
            "size", "a number says of some models the shorter side, of others both: " + right);
      }
      if (given.hasNonNull("height") && given.hasNonNull("width") && given.size() == 2) {
        return new Size(side("size", given.get("height")), side("size", given.get("width")));
      }
      if (given.hasNonNull("shortest_edge") && given.size() == 1) {
        int side = side("size", given.get("shortest_edge"));
        return new Size(isOf("Levit") ? (int) (256 / 224.0 * side) : side, 0);
      }
      throw wrong("size", right);
    }

    /** Whether the file says that it is of a kind of models, which read the keys in their own way. */
    private boolean isOf(String models) {
      return json.path("feature_extractor_type").asText().startsWith(models)
          || json.path("image_processor_type").asText().startsWith(models);
    }

    Size crop() {
      if (!flag("do_center_crop", has("crop_size"))) {
        return null;
      }
      JsonNode given = json.path("crop_size");
      if (given.isNumber()) {
        int side = side("crop_size", given);
        return new Size(side, side);
      }
      if (given.hasNonNull("height") && given.hasNonNull("width") && given.size() == 2) {
        return new Size(
            side("crop_size", given.get("height")), side("crop_size", given.get("width")));
      }
      throw wrong("crop_size", "{\"height\": 224, \"width\": 224} is right");
    }

    private int side(String key, JsonNode value) {
      if (!value.isIntegralNumber()
          || !value.canConvertToInt()
          || value.intValue() < 1
          || value.intValue() > MOST_SIDE) {
        throw wrong(key, "sides of 1 to " + MOST_SIDE + " pixels are right");
      }
      return value.intValue();
    }
  }
}
