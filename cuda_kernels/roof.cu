// What bounds a kernel on a device: how fast it calculates.

// Take rounds of 64 fused multiply-adds on every lane.
__global__ void calculate(float *lanes, float factor, float summand, int rounds, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float x = lanes[i];
        for (int round = 0; round < rounds; ++round) {
#pragma unroll
            for (int step = 0; step < 64; ++step) x = x * factor + summand;
        }
        lanes[i] = x;
    }
}
