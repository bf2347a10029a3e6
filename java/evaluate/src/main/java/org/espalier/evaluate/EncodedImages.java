package org.espalier.evaluate;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.image.ImageInput;
import org.espalier.image.ImageProcessor;
import org.espalier.image.ImageTensors;

/** Features of images: what a fixed encoder, a backbone of convolutions or attentions, makes of each, of length 1 together. */
public final class EncodedImages extends ImageFeatures {
  private final RuntimeModel model;
  private final Pooling pooling;
  private final int output;
  private final int width;
  private final int rank;

  /**
   * Opens an encoder and tries it.
   *
   * @param encoder an ONNX model that takes images and gives first embeddings [batch, width], hidden states [batch, tokens,
   *     width], or maps [batch, width, height, width] (where it takes images with their channels last [batch, height, width,
   *     width])
   * @param processor how images become tensors
   * @param pooling of hidden states; of maps the mean
   * @throws InputException if it is none
   */
  public EncodedImages(Path encoder, ImageProcessor processor, Pooling pooling) {
    super(new ImageTensors(processor, ImageInput.of(OnnxModel.read(encoder).inputs())));
    this.pooling = pooling;
    model = new RuntimeModel(MeasuredModel.of(encoder));
    try {
      output = model.mainOutput();
      long[][] shape = new long[1][];
      width = features(tensors().black(), shape).length;
      rank = shape[0].length;
    } catch (RuntimeException e) {
      model.close();
      throw e;
    }
  }

  @Override
  public int width() {
    return width;
  }

  /** The dimensions of what the encoder gives: 2 of embeddings, 3 of hidden states, 4 of maps. */
  public int rank() {
    return rank;
  }

  /** Whether maps have their channels before their places. */
  public boolean isChannelsFirst() {
    return tensors().input().channelsFirst();
  }

  @Override
  float[] features(ImageTensors.Image image) {
    return features(image, null);
  }

  /**
   * @param shape receives that of the output; may be null
   */
  private float[] features(ImageTensors.Image image, long[][] shape) {
    ImageInput input = tensors().input();
    try (OnnxTensor fed =
            ExampleTensors.Value.of(image.bytes(), image.shape(), input.type()).open();
        OrtSession.Result result = model.run(Map.of(input.name(), fed))) {
      OnnxValue given = result.get(output);
      FloatBuffer values = OnnxRuntime.floats(given);
      long[] own = given instanceof OnnxTensor tensor ? tensor.getInfo().getShape() : new long[0];
      if (values == null
          || own.length < 2
          || own.length > 4
          || own[0] != 1
          || !values.hasRemaining()) {
        throw new InputException(
            model.name()
                + ": its first output must be embeddings [batch, width], hidden states [batch,"
                + " tokens, width] or maps [batch, width, height, width] but has shape "
                + Arrays.toString(own));
      }
      if (shape != null) {
        shape[0] = own;
      }
      return normalized(pooled(values, own));
    } catch (OrtException e) {
      throw new InputException(
          model.name() + ": ONNX Runtime does not take an image: " + e.getMessage(), e);
    }
  }

  private float[] pooled(FloatBuffer values, long[] shape) {
    boolean first = shape.length == 4 && isChannelsFirst();
    int count = (int) shape[first ? 1 : shape.length - 1];
    int places = shape.length == 3 && pooling == Pooling.CLS ? 1 : values.remaining() / count;
    float[] features = new float[count];
    for (int c = 0; c < count; c++) {
      double sum = 0;
      for (int p = 0; p < places; p++) {
        sum += values.get(first ? c * places + p : p * count + c);
      }
      features[c] = (float) (sum / places);
    }
    return features;
  }

  @Override
  void release() {
    model.close();
  }
}
