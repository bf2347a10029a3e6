package org.espalier.transformers;

import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Encoders and decoders of each kind give in ONNX Runtime and in libtorch what plain loops compute of the same weights, an
 * answer at once as one step by step.
 */
class EncoderDecoderTest {
  @TempDir private Path folder;

  private static SmallBart ofMarian() {
    SmallBart model = new SmallBart("marian");
    model.scales = true;
    model.activation = "swish";
    model.bend = SmallCheckpoint::silu;
    return model;
  }

  @Test
  void marian() throws Exception {
    ofMarian().compare(folder);
  }

  /** Either part has a table of its own, and the head is that of the answers. */
  @Test
  void marianOfTwoTables() throws Exception {
    SmallBart model = ofMarian();
    model.ownWords = ReferencePair.WORDS + 6;
    model.dtype = SafetensorsDtype.BF16;
    model.compare(folder);
  }

  /** The head is none of the tables. */
  @Test
  void marianOfAHead() throws Exception {
    SmallBart model = ofMarian();
    model.tied = false;
    model.compare(folder);
  }

  /** As older versions of Transformers stored them. */
  @Test
  void marianWithItsWaves() throws Exception {
    SmallBart model = ofMarian();
    model.storesWaves = true;
    model.compare(folder);
  }

  @Test
  void bart() throws Exception {
    new SmallBart("bart").compare(folder);
  }

  /** As the published base model, which has no head of its own and the table by another name. */
  @Test
  void bartWithoutAHead() throws Exception {
    SmallBart model = new SmallBart("bart");
    model.base = "";
    model.stored = "decoder.embed_tokens";
    model.hasBias = false;
    model.compare(folder);
  }

  @Test
  void mbart() throws Exception {
    SmallBart model = new SmallBart("mbart");
    model.scales = true;
    model.activation = "relu";
    model.bend = x -> Math.max(0, x);
    model.dtype = SafetensorsDtype.BF16;
    model.compare(folder);
  }

  @Test
  void t5() throws Exception {
    new SmallT5("relu").compare(folder);
  }

  @Test
  void t5ThatIsGated() throws Exception {
    SmallT5.ofAHead().compare(folder);
  }

  /** As newer versions of Transformers write them: tied is what the tables are, and the head is one of its own. */
  @Test
  void t5OfNewerConfigurations() throws Exception {
    SmallT5 model = new SmallT5("relu");
    model.hasHead = true;
    model.settings = ", \"scale_decoder_outputs\": true";
    model.compare(folder);
  }

  /** An encoder alone needs no part named and gives states alone, also without the decoder's tensors. */
  @Test
  void t5ThatEncodesOnly() throws Exception {
    SmallT5 model = new SmallT5("relu");
    SmallCheckpoint weights = model.weights();
    weights.names().stream().filter(name -> name.startsWith("decoder.")).forEach(weights::remove);
    String config = model.config().replace("T5ForConditionalGeneration", "T5EncoderModel");
    List<double[][]> expected =
        List.of(model.read(model.weights(), 0), model.read(model.weights(), 1));
    SmallEncoder.compare(folder, weights, config, model.inputs(), expected, Set.of());
  }

  @Test
  void whisper() throws Exception {
    new SmallWhisper().compare(folder);
  }
}
