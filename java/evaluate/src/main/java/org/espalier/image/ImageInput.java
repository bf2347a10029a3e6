package org.espalier.image;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto.Dimension;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.onnx.ImageLayout;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * The input of a model that takes images.
 *
 * @param name null for the only input of a module
 * @param type of a value
 * @param channels 3, or 1 for shades of grey
 * @param height 0 where it is open
 * @param width 0 where it is open
 * @param channelsFirst [batch, channels, height, width]; else [batch, height, width, channels]
 */
public record ImageInput(
    String name,
    SafetensorsDtype type,
    int channels,
    int height,
    int width,
    boolean channelsFirst) {
  /** Of float32 [batch, 3, height, width], as modules of PyTorch take images. */
  public static final ImageInput OF_MODULES =
      new ImageInput(null, SafetensorsDtype.F32, 3, 0, 0, true);

  private static final Map<DataType, SafetensorsDtype> TYPES =
      Map.of(
          DataType.FLOAT, SafetensorsDtype.F32,
          DataType.FLOAT16, SafetensorsDtype.F16,
          DataType.BFLOAT16, SafetensorsDtype.BF16,
          DataType.UINT8, SafetensorsDtype.U8);

  /**
   * The input of an ONNX model.
   *
   * @param inputs all that the model has
   * @throws InputException where it has several, or one that takes no images
   */
  public static ImageInput of(List<ValueInfoProto> inputs) {
    if (inputs.size() != 1) {
      throw new InputException(
          "images are fed to models of one input; the model has "
              + inputs.stream().map(ValueInfoProto::getName).toList());
    }
    ValueInfoProto input = inputs.get(0);
    var tensor = input.getType().getTensorType();
    SafetensorsDtype type = TYPES.get(DataType.forNumber(tensor.getElemType()));
    List<Dimension> dims = tensor.getShape().getDimList();
    if (type == null || dims.size() != 4) {
      throw no(input);
    }
    ImageLayout layout = ImageLayout.of(dims.get(1).getDimValue(), dims.get(3).getDimValue());
    if (layout == null) {
      throw no(input);
    }
    boolean last = layout == ImageLayout.CHANNELS_LAST;
    long channels = dims.get(last ? 3 : 1).getDimValue();
    return new ImageInput(
        input.getName(),
        type,
        channels > 0 ? (int) channels : 3,
        side(dims.get(last ? 1 : 2), input),
        side(dims.get(last ? 2 : 3), input),
        !last);
  }

  private static int side(Dimension d, ValueInfoProto input) {
    if (d.getDimValue() < 0 || d.getDimValue() > ImageProcessor.MOST_SIDE) {
      throw no(input);
    }
    return (int) d.getDimValue();
  }

  private static InputException no(ValueInfoProto input) {
    return new InputException(
        "the input "
            + input.getName()
            + " takes no images, which are float32, float16, bfloat16 or uint8 [batch, 3,"
            + " height, width] or [batch, height, width, 3], or of 1 channel");
  }

  /** The shape of an image of a size, without the batch. */
  List<Long> shape(Pixels image) {
    long high = image.height();
    long wide = image.width();
    long deep = channels;
    return channelsFirst ? List.of(deep, high, wide) : List.of(high, wide, deep);
  }

  /**
   * What each value of 0 to 255 of each channel is fed as.
   *
   * @return by the channel's place and the value, the bits of its type
   * @throws InputException where the type has no such values
   */
  long[][] bits(ImageProcessor processor) {
    processor.requireChannels(channels);
    if (type == SafetensorsDtype.U8 && !processor.keepsValues()) {
      throw new InputException(
          processor.file()
              + " scales values, and the model takes them as they are, uint8: \"do_rescale\": false"
              + " and \"do_normalize\": false are right");
    }
    long[][] bits = new long[channels][256];
    for (int c = 0; c < channels; c++) {
      float[] values = processor.values(c);
      var halves =
          is16()
              ? OnnxInitializer.floats("", onnxType(), new long[] {values.length}, values).data()
              : null;
      for (int v = 0; v < values.length; v++) {
        bits[c][v] =
            halves != null
                ? halves.getShort()
                : type == SafetensorsDtype.U8 ? v : Float.floatToRawIntBits(values[v]);
      }
    }
    return bits;
  }

  private boolean is16() {
    return type == SafetensorsDtype.F16 || type == SafetensorsDtype.BF16;
  }

  private DataType onnxType() {
    return type == SafetensorsDtype.F16 ? DataType.FLOAT16 : DataType.BFLOAT16;
  }
}
