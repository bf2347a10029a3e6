// Marks what both processors and CUDA devices run.
#pragma once

#if defined(__CUDACC__)
#define ESP_EVERYWHERE __host__ __device__
#else
#define ESP_EVERYWHERE
#endif
