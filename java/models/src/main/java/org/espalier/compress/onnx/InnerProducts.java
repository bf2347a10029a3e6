package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.format.Sha256;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Use;

/**
 * The products in branches and bodies. Branches for texts that begin and that go on hold the same layers, of which an example
 * runs one: nodes with equal matrices are one product, and what any of them reads tells how to round it for all.
 */
final class InnerProducts {
  /** Values of a matrix that are summed at once. */
  private static final int CHUNK = 1 << 14;

  private final OnnxModel model;
  private final Map<String, NodeProto> main;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> readers;

  /** Those whose values calibration sees. */
  private final Map<String, NodeProto> inBranches;

  /** By rows, columns and content of the matrix. */
  private final Map<List<Object>, Product> products = new LinkedHashMap<>();

  /** What their nodes in branches of If read. */
  private final Map<Product, Set<String>> activations = new HashMap<>();

  /** Sums of matrices, by constant and axes. */
  private final Map<List<Object>, String> contents = new HashMap<>();

  /** The look-ups in them. */
  private final Map<List<Object>, List<String>> allLookUps = new HashMap<>();

  InnerProducts(OnnxModel model) {
    this.model = model;
    main = model.producers();
    producers = model.allProducers();
    readers = model.readers();
    inBranches = BranchValues.nodes(model);
  }

  /** Adds a node that multiplies with a matrix [rows, columns]. */
  void add(OnnxWeight weight, Use use, int rows, int columns) {
    List<Object> matrix = List.of(weight.value(), use.axes());
    String content = contents.computeIfAbsent(matrix, key -> content(weight.value(), use.axes()));
    Product product =
        products.computeIfAbsent(
            List.of(rows, columns, content), key -> new Product(weight, use, rows, columns));
    List<String> lookUps = allLookUps.computeIfAbsent(matrix, key -> lookUps(weight, use));
    product.add(model, weight, use, lookUps, readers);
    Set<String> read = activations.computeIfAbsent(product, key -> new LinkedHashSet<>());
    NodeProto n = inBranches.get(use.node());
    if (n != null) {
      read.add(n.getInput(0));
    }
  }

  /** The look-ups in branches and bodies; none where the main graph reads the weight too. */
  private List<String> lookUps(OnnxWeight weight, Use product) {
    return ProductSite.lookUps(
        weight,
        product,
        producers,
        node -> !main.containsKey(node),
        use ->
            use.axes().equals(product.axes())
                && !main.containsKey(use.node())
                && ProductSite.obstacle(model, weight, use, producers) == null);
  }

  private String content(String value, List<Integer> axes) {
    OnnxInitializer w = model.constant(value);
    FloatBuffer values = Permutation.apply(w.floats(), w.dims(), axes);
    MessageDigest digest = Sha256.digest();
    ByteBuffer bytes = ByteBuffer.allocate(Float.BYTES * CHUNK);
    while (values.hasRemaining()) {
      int n = Math.min(CHUNK, values.remaining());
      bytes.asFloatBuffer().put(values.slice(values.position(), n));
      values.position(values.position() + n);
      digest.update(bytes.array(), 0, Float.BYTES * n);
    }
    return HexFormat.of().formatHex(digest.digest());
  }

  /** The sites: products whose nodes read the same values share one; one that calibration does not see has its own. */
  List<ProductSite> sites() {
    Map<Object, ProductSite> sites = new LinkedHashMap<>();
    for (Product p : products.values()) {
      Set<String> read = activations.get(p);
      Object key = read.isEmpty() ? p : List.of(read, p.rows);
      sites
          .computeIfAbsent(key, k -> new ProductSite(new ArrayList<>(read), p.rows, true))
          .products
          .add(p);
    }
    return List.copyOf(sites.values());
  }
}
