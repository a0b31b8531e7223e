// A pool of persistent threads, and a spinning barrier: waking a thread takes longer than a time step.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>
#include <unistd.h>

class Barrier {
public:
    explicit Barrier(int members) : members(members) {}
    void wait() {
        if (members == 1) return;
        const int turn = turns.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
            arrived.store(0, std::memory_order_relaxed);
            turns.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turns.load(std::memory_order_acquire) == turn; spins++) {
            if (spins > 2000) std::this_thread::yield();  // more threads than free cores
        }
    }

private:
    const int members;
    std::atomic<int> arrived{0}, turns{0};
};

class Pool {
public:
    // Call work(member, barrier) for member = 0 .. members - 1 in parallel, member 0 on the caller's thread.
    // Concurrent calls run one after the other.
    void run(int members, const std::function<void(int, Barrier &)> &work) {
        Barrier barrier(members);
        if (members == 1) {
            work(0, barrier);
            return;
        }
        std::unique_lock<std::mutex> alone(calls);
        grow(members - 1);
        {
            std::unique_lock<std::mutex> lock(mutex);
            task = [&](int member) { work(member, barrier); };
            wanted = members - 1;
            running = members - 1;
            round++;
        }
        start.notify_all();
        work(0, barrier);
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, [&] { return running == 0; });
    }
    ~Pool() {
        {
            std::unique_lock<std::mutex> lock(mutex);
            ending = true;
        }
        start.notify_all();
        for (auto &thread : workers) thread.join();
    }

private:
    void grow(int count) {
        try {
            while ((int)workers.size() < count) workers.emplace_back([this, me = (int)workers.size(), seen = round] { serve(me, seen); });
        } catch (const std::system_error &) {  // no thread left, which a lack of memory causes too
            throw std::bad_alloc();
        }
    }
    void serve(int me, long seen) {
        for (;;) {
            std::function<void(int)> mine;
            {
                std::unique_lock<std::mutex> lock(mutex);
                start.wait(lock, [&] { return ending || (round != seen && me < wanted); });
                if (ending) return;
                seen = round;
                mine = task;
            }
            mine(me + 1);
            std::unique_lock<std::mutex> lock(mutex);
            if (--running == 0) done.notify_one();
        }
    }
    std::mutex calls, mutex;
    std::condition_variable start, done;
    std::vector<std::thread> workers;
    std::function<void(int)> task;
    int wanted = 0, running = 0;
    long round = 0;
    bool ending = false;
};

// Threads don't survive a fork, so a child process gets a pool of its own; the parent's is not touched.
inline Pool &pool() {
    static std::mutex mutex;
    static Pool *current = nullptr;
    static pid_t owner = 0;
    std::unique_lock<std::mutex> lock(mutex);
    if (owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}
